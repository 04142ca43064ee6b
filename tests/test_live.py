import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import time
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from sunx_adapter import AsyncSunx, Sandbox
from sunx_adapter.cli.live import Pane, follow, render, sparkline
from tests.conftest import answered, payload
from tests.test_cli import CLEAN, COMMAND, run


def test_json_lines() -> None:
    """--json writes a line per change: the first balance, then each other one."""
    done = run("watch", "--sandbox", "--json", "--changes", "4", "-e", "sunx")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert {line["exchange"] for line in lines} == {"sunx"}
    totals = [line["balance"]["total"] for line in lines]
    assert all(one != other for one, other in pairwise(totals))


def test_needs_a_terminal() -> None:
    """Without a terminal the live view says what to do instead."""
    done = run("watch", "--sandbox")
    assert done.returncode == 1
    assert "--json" in done.stderr


def test_refused_key() -> None:
    """A refused key ends the watching with an error in a line, and status 1."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx")
        environ = {
            "SUNX_API_KEY": config["apiKey"],
            "SUNX_API_SECRET": "made-up-wrong-secret",
            "SUNX_REST_URL": sandbox.url,
            "SUNX_STREAM_URL": sandbox.stream_url,
        }
        done = run("watch", "--json", "-e", "sunx", **environ)
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_terminal_is_left_clean() -> None:
    """The view is drawn on a terminal, and Ctrl-C gives the terminal back as it was."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "watch", "--sandbox", "-e", "sunx"],
        env=CLEAN | {"TERM": "xterm-256color", "LINES": "30"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        shown = b""
        deadline = time.monotonic() + 40
        while "live" not in shown.decode("utf-8", "replace") and time.monotonic() < deadline:
            if select.select([controller], [], [], 1)[0]:
                shown += os.read(controller, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while select.select([controller], [], [], 20)[0]:
                shown += os.read(controller, 65536)
        except OSError:
            pass  # the other end is closed: the process has ended
        finally:
            os.close(controller)
    assert process.returncode == 130
    text = shown.decode("utf-8", "replace")
    assert "USDT" in text
    assert text.rindex("\x1b[?1049l") > text.rindex("\x1b[?1049h")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Traceback" not in text


def test_polls_where_there_is_no_push() -> None:
    """An exchange whose push cannot be reached is polled, and says so."""

    async def first() -> Pane:
        config = answered(payload("htx-v5-documented")) | {"number": str}
        config["urls"] = {"api": {"stream": "ws://127.0.0.1:9"}}
        config["options"]["streamGapTimeout"] = 200
        config["options"]["streamSnapshotTimeout"] = 10_000
        there, pane = asyncio.Event(), Pane("sunx")
        async with AsyncSunx(config) as exchange:
            task = asyncio.create_task(follow(exchange, pane, {}, lambda _: there.set()))
            await asyncio.wait_for(there.wait(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return pane

    pane = asyncio.run(first())
    assert pane.balance is not None
    assert pane.balance["USDT"]["free"] == "-2.9969196676"
    assert "polled" in pane.connection


def shown(pane: Pane, now: float) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(render([pane], now))
        return console.export_text(styles=True)


def balance_of(total: str) -> dict[str, Any]:
    figures = {"free": total, "used": "0", "total": total}
    views = {view: {"USDT": figure} for view, figure in figures.items()}
    return {"USDT": figures, **views, "info": {}}


def test_changes_are_highlighted() -> None:
    """A figure that changed is highlighted for a moment, an unchanged one is not."""
    pane = Pane("sunx")
    assert pane.take(balance_of("1"), None)
    assert not pane.take(balance_of("1"), None)
    assert pane.take(balance_of("2"), None)
    assert "\x1b[30;43m" in shown(pane, time.monotonic())
    assert "\x1b[30;43m" not in shown(pane, time.monotonic() + 60)


def test_sparkline() -> None:
    """The lowest figure is the lowest bar, the highest the highest."""
    assert sparkline([Decimal(1), Decimal(8), Decimal("4.5")]) == "▁█▄"
    assert sparkline([Decimal(3)] * 2) == "▁▁"
    assert sparkline([]) == ""
