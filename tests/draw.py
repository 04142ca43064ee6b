"""Draws the README's pictures: ``python -m tests.draw``.

They show the real commands, run in a terminal against a sandbox. ``tests/test_docs.py`` compares
them with what the commands show now.
"""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from sunx_adapter import Holding, Sandbox
from tests.processes import PythonProcess

DOCS: Final = Path(__file__).parent.parent / "docs"
COLUMNS: Final = 90
ROWS: Final = 16
NOON: Final = 1_767_268_800  # 2026-01-01 12:00:00 UTC
LEAVES_FULL_SCREEN: Final = "\x1b[?1049l"
CASH: Final = Decimal(12480)
PROFITS: Final = tuple(map(Decimal, ("120.5", "188.25", "97.75", "45.5", "176", "231.25")))


def balance() -> str:
    """Return what ``sunx-adapter balance`` shows of two accounts, one of them with a debt."""
    with venue(lambda: NOON) as (_, variables):
        return run_in_terminal("balance", variables=variables)


def watch() -> str:
    """Return what ``sunx-adapter watch`` shows of an account after some changes."""
    shown = 0

    def change(written: str) -> None:
        # Make the next change when the previous one is on the screen.
        nonlocal shown
        if f"{CASH + PROFITS[shown]:,f}" in written and shown < len(PROFITS) - 1:
            shown += 1
            sandbox.update("main", holdings(PROFITS[shown]))

    with venue(time.time) as (sandbox, variables):
        sandbox.update("main", holdings(PROFITS[shown]))
        arguments = ("watch", "-e", "sunx", "--changes", str(len(PROFITS)))
        return run_in_terminal(*arguments, variables=variables, seen=change)


def holdings(profit: Decimal) -> list[Holding]:
    """Return an account whose open position has earned this profit."""
    margin = {"initial_margin": "3210.75", "maintenance_margin": "642.15"}
    return [
        Holding("USDT", cash=str(CASH), profit_unreal=str(profit), **margin),
        Holding("BTC", cash="0.4", price="64000"),
        Holding("ETH", cash="5.2", initial_margin="0.75", price="2600"),
    ]


@contextmanager
def venue(clock: Callable[[], float]) -> Iterator[tuple[Sandbox, dict[str, str]]]:
    """Yield a sandbox, and an environment that points the command line at it."""
    with Sandbox(clock=clock) as sandbox:
        variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        for prefix, exchange_id, account in (
            ("SUNX", "sunx", "main"),
            ("HTXFUTURES", "htxfutures", "indebted"),
        ):
            config = sandbox.config(exchange_id, account)
            variables[f"{prefix}_API_KEY"] = config["apiKey"]
            variables[f"{prefix}_API_SECRET"] = config["secret"]
            variables[f"{prefix}_REST_URL"] = config["urls"]["api"]["rest"]
            variables[f"{prefix}_STREAM_URL"] = config["urls"]["api"]["stream"]
        yield sandbox, variables | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}


def run_in_terminal(
    *arguments: str, variables: dict[str, str], seen: Callable[[str], None] = lambda _: None
) -> str:
    """Run a command in a pseudo-terminal; return what it leaves on the screen.

    Args:
        arguments: arguments of ``sunx-adapter``.
        variables: the environment.
        seen: called after each read with the whole output so far.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written = b""
    with (
        open(os.devnull, "w") as nowhere,
        PythonProcess(
            *("-m", "sunx_adapter", *arguments),
            env=variables,
            stdin=theirs,
            stdout=theirs,
            stderr=nowhere.fileno(),
        ) as process,
    ):
        os.close(theirs)
        while piece := _read_piece(ours):
            written += piece
            seen(written.decode(errors="ignore"))
    os.close(ours)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    # After a live view, only what it leaves on the screen.
    return written.decode().replace("\r\n", "\n").rpartition(LEAVES_FULL_SCREEN)[2]


def _read_piece(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux raises it when the other end is closed
        return b""


def picture(name: str, screen: str) -> str:
    """Return the screen as an SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    lines = Text.from_ansi(screen).split()
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console.print(Text("\n").join(lines), highlight=False)
    svg = console.export_svg(title=f"sunx-adapter {name}", unique_id=name)
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def words(svg: str) -> list[str]:
    """Return the words in a picture, whatever its colours and version of rich."""
    found = re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL)
    return unescape(" ".join(found)).split()


PICTURES: Final = {"balance": balance, "watch": watch}


if __name__ == "__main__":
    for each, draw in PICTURES.items():
        (DOCS / f"{each}.svg").write_text(picture(each, draw()), "utf-8")
