import asyncio
import json
import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from subprocess import PIPE
from typing import Any

import pytest
from rich.console import Console

from sunx_adapter import AsyncSunx, Sandbox
from sunx_adapter.cli.live import Pane, follow, render, sparkline
from sunx_adapter.sandbox import Holding
from tests.conftest import config_answering, payload
from tests.processes import PythonProcess
from tests.test_cli import CLEAN, COMMAND, run

ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"
SECONDS = 40


def keys_of(sandbox: Sandbox, account: str = "main", *prefixes: str) -> dict[str, str]:
    """Return the variables that point the command line at a sandbox."""
    config = sandbox.config("sunx", account)
    return {
        f"{prefix}_{name}": value
        for prefix in prefixes or ("SUNX",)
        for name, value in (
            ("API_KEY", config["apiKey"]),
            ("API_SECRET", config["secret"]),
            ("REST_URL", sandbox.url),
            ("STREAM_URL", sandbox.stream_url),
        )
    }


class Terminal:
    """A command in a pseudo-terminal.

    Attributes:
        status: the exit status, once the command has ended.
    """

    def __init__(self, process: PythonProcess, controller: int) -> None:
        self._process = process
        self._controller = controller
        self._shown = b""
        self.status: int | None = None

    @property
    def text(self) -> str:
        """Return all output so far."""
        return self._shown.decode("utf-8", "replace")

    @property
    def frame(self) -> str:
        """Return the live view's last or current screen."""
        drawn = self.text.rpartition(NORMAL)[0] if NORMAL in self.text else self.text
        whole = drawn.split("\x1b[H")
        return plain(whole[-1] if NORMAL in self.text else whole[-2] if len(whole) > 1 else "")

    @property
    def remaining(self) -> str:
        """Return what remains on the terminal after the live view."""
        return plain(self.text.rpartition(NORMAL)[2])

    def wait_until(self, reached: Callable[["Terminal"], bool]) -> None:
        """Read until the condition holds."""
        deadline = time.monotonic() + SECONDS
        while not reached(self):
            assert time.monotonic() < deadline, self.text[-2000:]
            self._read(1)

    def interrupt(self) -> None:
        """Press Ctrl-C, and read until the command has ended."""
        self._process.send_signal(signal.SIGINT)
        self.end()

    def end(self) -> None:
        """Read until the command has ended."""
        while self._read(SECONDS):
            pass
        self.status = self._process.wait(SECONDS)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._controller], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._controller, 65536)
        except OSError:  # the process has ended and closed its end
            piece = b""
        self._shown += piece
        return bool(piece)


@contextmanager
def terminal(
    *arguments: str, columns: int = 120, lines: int = 30, **environ: str
) -> Iterator[Terminal]:
    """Run a command in a terminal of this size; kill it at the end."""
    controller, other_end = pty.openpty()
    size = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
    with PythonProcess(
        *COMMAND,
        *arguments,
        env=CLEAN | size | environ,
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
    ) as process:
        os.close(other_end)
        try:
            yield Terminal(process, controller)
        finally:
            process.kill()
            os.close(controller)


def plain(text: str) -> str:
    """Return the text without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


def test_json_lines() -> None:
    """``--json`` prints the first balance and each change, one per line."""
    done = run("watch", "--sandbox", "--json", "--changes", "4", "-e", "sunx")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert {line["exchange"] for line in lines} == {"sunx"}
    totals = [line["balance"]["total"] for line in lines]
    assert all(one != other for one, other in pairwise(totals))


def test_json_like_balance(sandbox: Sandbox) -> None:
    """``watch --json`` and ``balance --json`` print figures alike, as exact text."""
    environ = keys_of(sandbox, "indebted")
    line = json.loads(run("watch", "--json", "--changes", "1", **environ).stdout)
    balance = json.loads(run("balance", "--json", **environ).stdout)
    for part in ("free", "used", "total", "debt"):
        assert line["balance"][part] == balance[part]
        assert all(isinstance(figure, str) for figure in balance[part].values())


def test_needs_a_terminal() -> None:
    """Without a terminal, the live view suggests ``--json``."""
    done = run("watch", "--sandbox")
    assert done.returncode == 1
    assert "--json" in done.stderr


def test_refused_key(sandbox: Sandbox) -> None:
    """A refused key ends ``watch`` with a one-line error and status 1."""
    environ = keys_of(sandbox) | {"SUNX_API_SECRET": "made-up-wrong-secret"}
    done = run("watch", "--json", "-e", "sunx", **environ)
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_pipe(sandbox: Sandbox) -> None:
    """``watch`` ends quietly when its output pipe is closed, even if no balance changes."""
    environ = CLEAN | keys_of(sandbox)
    with PythonProcess(
        *COMMAND, "watch", "--json", env=environ, stdout=PIPE, stderr=PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert '"USDT"' in process.stdout.readline()
            process.stdout.close()
            process.wait(SECONDS)
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_ctrl_c_keeps_the_last_state(sandbox: Sandbox) -> None:
    """Ctrl-C restores the terminal and leaves the last state on it."""
    with terminal("watch", columns=120, lines=30, **keys_of(sandbox)) as shown:
        shown.wait_until(lambda shown: "live" in shown.frame)
        shown.interrupt()
    assert shown.status == 130
    assert shown.text.rindex(NORMAL) > shown.text.rindex(ALTERNATE)
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
    assert re.search(r"sunx  NORMAL  live.*USDT +9,455.90007511… ", shown.remaining, re.DOTALL)
    assert "Traceback" not in shown.text


def test_changes_keep_the_last_state() -> None:
    """``--changes`` also leaves the last state on the terminal; the status is 0."""
    with terminal("watch", "--sandbox", "-e", "sunx", "--changes", "2") as shown:
        shown.end()
    assert shown.status == 0
    assert re.search(r"USDT +[\d,.]+… ", shown.remaining)


def test_ctrl_c_keeps_the_last_state_of_a_fleet() -> None:
    """``fleet --watch`` leaves its summary on the terminal, too."""
    with terminal("fleet", "--sandbox", "4", "--workers", "1", "--watch") as shown:
        shown.wait_until(lambda shown: "4 of 4 accounts read" in shown.frame)
        shown.interrupt()
    assert shown.status == 130
    assert re.search(r"4 of 4 accounts read.*USDT.*account-", shown.remaining, re.DOTALL)
    assert "Traceback" not in shown.text


ROWS = ["USDT 9,455.90007511… 3,210.75 12,666.65007511… 25%", "BTC 0.40000001 0 0.40000001 0%"]


@pytest.mark.parametrize(
    ("columns", "headings", "figures"),
    [
        (40, ["currency", "free (margin)"], 1),
        (60, ["currency", "free (margin)", "used", "total"], 3),
        (80, ["currency", "free (margin)", "used", "total", "in use"], 4),
        (200, ["currency", "free (margin)", "used", "total", "in use"], 4),
    ],
)
def test_fits_the_terminal(
    sandbox: Sandbox, columns: int, headings: list[str], figures: int
) -> None:
    """A narrow terminal shows fewer columns, the most important first; no figure is cut."""
    environ = keys_of(sandbox, "main", "SUNX", "HTXFUTURES")
    with terminal("watch", columns=columns, lines=12, **environ) as shown:
        shown.wait_until(lambda shown: shown.frame.count("USDT") == 2)
        shown.interrupt()
    for drawn in (shown.frame, shown.remaining):
        lines = [" ".join(re.sub("[█░]", "", line).split()) for line in drawn.splitlines()]
        assert lines.count(" ".join(headings)) == 2
        for row in ROWS:
            assert lines.count(" ".join(row.split()[: figures + 1])) == 2
        assert "more" not in drawn


def test_hidden_currencies_are_counted(sandbox: Sandbox) -> None:
    """Currencies that do not fit the terminal are counted; each account shows some."""
    sandbox.update("main", [Holding(f"C{number}", "1") for number in range(30)])
    environ = keys_of(sandbox, "main", "SUNX", "HTXFUTURES")
    with terminal("watch", columns=60, lines=12, **environ) as shown:
        shown.wait_until(lambda shown: shown.frame.count("more currencies") == 2)
        shown.interrupt()
    counts = [int(count) for count in re.findall(r"and (\d+) more currencies", shown.frame)]
    assert len(counts) == 2
    rows = len(re.findall(r"^C\d+ ", shown.frame, re.MULTILINE))
    assert rows + sum(counts) == 60
    assert rows >= 4
    assert len(re.findall(r"^C\d+ ", shown.remaining, re.MULTILINE)) == 60


def test_hidden_accounts_are_counted(sandbox: Sandbox, tmp_path: Any) -> None:
    """Accounts that do not fit the terminal are counted."""
    config = sandbox.config("sunx")
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(
            f'[bot-{number}]\nexchange = "sunx"\napiKey = "{config["apiKey"]}"\n'
            f'secret = "{config["secret"]}"\n[bot-{number}.urls.api]\nrest = "{sandbox.url}"\n'
            f'stream = "{sandbox.stream_url}"\n'
            for number in range(6)
        )
    )
    file.chmod(0o600)
    environ = {"SUNX_ADAPTER_KEYS": str(file)}
    with terminal("watch", columns=60, lines=12, **environ) as shown:
        shown.wait_until(lambda shown: "more accounts" in shown.frame)
        shown.interrupt()
    counted = re.search(r"and (\d) more accounts", shown.frame)
    assert counted is not None
    assert len(re.findall(r"^bot-\d \(sunx\)", shown.frame, re.MULTILINE)) == 6 - int(counted[1])
    assert len(re.findall(r"^bot-\d \(sunx\)", shown.remaining, re.MULTILINE)) == 6


def test_reason_for_waiting() -> None:
    """The screen soon shows why there is no balance yet."""
    with Sandbox() as sandbox:
        environ = keys_of(sandbox)
    began = time.monotonic()
    with terminal("watch", columns=80, lines=30, **environ) as shown:
        shown.wait_until(
            lambda shown: "connecting" in shown.frame and "refused" in " ".join(shown.frame.split())
        )
        assert time.monotonic() - began < 20
        shown.interrupt()
    assert "refused" in shown.remaining
    assert "Traceback" not in shown.text


def test_reason_for_waiting_with_json() -> None:
    """With ``--json``, the reason goes to standard error."""
    with Sandbox() as sandbox:
        environ = keys_of(sandbox)
    with PythonProcess(
        *COMMAND,
        "watch",
        "--json",
        env=CLEAN | environ,
        stdout=PIPE,
        stderr=PIPE,
    ) as process:
        assert process.stderr is not None
        try:
            assert "reconnecting" in process.stderr.readline()
        finally:
            process.kill()


def test_polls_while_the_push_is_down() -> None:
    """While the push channel is down, the exchange is polled, and the view says why."""

    async def first() -> Pane:
        config = config_answering(payload("htx-v5-documented")) | {"number": str}
        config["urls"] = {"api": {"stream": "ws://127.0.0.1:9"}}
        drawn_once, pane = asyncio.Event(), Pane("main", "sunx")
        async with AsyncSunx(config) as exchange:
            task = asyncio.create_task(follow(exchange, pane, {}, lambda _: drawn_once.set()))
            await asyncio.wait_for(drawn_once.wait(), 20)
            drawn = shown(pane, time.monotonic())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert "main (sunx)" in drawn
        assert "connecting, polled every 3 s" in drawn
        assert "127.0.0.1" in drawn
        return pane

    pane = asyncio.run(first())
    assert pane.balance is not None
    assert pane.balance["USDT"]["free"] == "-2.9969196676"


def shown(pane: Pane, now: float) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(render([pane], now, console))
        return console.export_text(styles=True)


def balance_of(total: str, timestamp: int = 0) -> dict[str, Any]:
    figures = {"free": total, "used": "0", "total": total}
    views = {view: {"USDT": figure} for view, figure in figures.items()}
    return {"USDT": figures, **views, "info": {}, "timestamp": timestamp}


def test_changes_are_highlighted() -> None:
    """A changed figure is highlighted for a moment, an unchanged one is not."""
    pane = Pane("sunx", "sunx")
    assert pane.update(balance_of("1"), None, polled=False)
    assert not pane.update(balance_of("1"), None, polled=False)
    assert pane.update(balance_of("2"), None, polled=False)
    assert "\x1b[30;43m" in shown(pane, time.monotonic())
    assert "\x1b[30;43m" not in shown(pane, time.monotonic() + 60)


def test_older_balances_are_not_shown() -> None:
    """A polled balance that is older than the last pushed one is ignored."""
    pane = Pane("sunx", "sunx")
    assert pane.update(balance_of("2", 2000), None, polled=False)
    assert not pane.update(balance_of("1", 1000), None, polled=True)
    assert pane.balance == balance_of("2", 2000)


def test_sparkline() -> None:
    """The lowest figure has the lowest bar, the highest figure the highest."""
    assert sparkline([Decimal(1), Decimal(8), Decimal("4.5")]) == "▁█▄"
    assert sparkline([Decimal(3)] * 2) == "▁▁"
    assert sparkline([]) == ""
