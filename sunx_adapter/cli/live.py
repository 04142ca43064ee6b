"""The live view: balances that are drawn as they change, or written line by line as JSON."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import stat
import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ccxt.base.errors import BadResponse, NetworkError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sunx_adapter.cli.table import (
    LEAST_FIRST,
    VIEWS,
    amount_text,
    balance_table,
    bar,
    heading,
    state_text,
)
from sunx_adapter.stream import StreamState, StreamStatus
from sunx_adapter.text import printable
from sunx_adapter.venue import VENUES, FreePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from sunx_adapter.host import ExchangeHost
    from sunx_adapter.keys import Account
    from sunx_adapter.protocol.account import AccountSummary

POLL_SECONDS: Final = 3.0
HIGHLIGHT_SECONDS: Final = 2.0
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARK_COUNT: Final = 40
REFRESH_PER_SECOND: Final = 4
REASON_LINES: Final = 3
FEW_ROWS: Final = 3
"""If no more currencies than these of an account fit, everything else makes room for them."""


@dataclass(slots=True)
class Pane:
    """What is shown of one account.

    Attributes:
        name: of the account.
        exchange_id: of its exchange.
        policy: what ``free`` means; empty if that is unknown.
        status: gives the state of the push connection, where there is one.
        balance: the newest, figures as text; ``None`` before the first.
        summary: the account behind it, where the exchange has that.
        polled: whether the newest balance was polled, not pushed.
        problem: why there is no newer balance, if polling failed.
        seen: when the newest came, on :func:`time.monotonic`'s clock.
        changed: when each figure last changed, by code and view.
        equities: the latest account equities, for the sparkline.
    """

    name: str
    exchange_id: str
    policy: str = ""
    status: Callable[[], StreamStatus] | None = None
    balance: dict[str, Any] | None = None
    summary: AccountSummary | None = None
    polled: bool = False
    problem: str = ""
    seen: float = 0.0
    changed: dict[tuple[str, str], float] = field(default_factory=dict)
    equities: deque[Decimal] = field(default_factory=lambda: deque(maxlen=SPARK_COUNT))

    def take(self, balance: dict[str, Any], summary: AccountSummary | None, polled: bool) -> bool:
        """Take in a balance, unless it is older than the newest; whether anything has changed."""
        before, now = self.balance, time.monotonic()
        if before is not None and _is_older(balance, before):
            return False
        different = {
            (code, view)
            for code in balance["total"]
            for view in VIEWS
            if before is not None and _figure(before, code, view) != _figure(balance, code, view)
        }
        others = before is None or before["total"].keys() != balance["total"].keys()
        state_is_new = (self.summary and self.summary.state) != (summary and summary.state)
        self.changed.update(dict.fromkeys(different, now))
        self.balance, self.summary, self.polled = balance, summary, polled
        self.seen, self.problem = now, ""
        if summary is not None:
            self.equities.append(summary.equity)
        return bool(different) or others or state_is_new


def _is_older(balance: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    then, newest = balance.get("timestamp"), other.get("timestamp")
    return then is not None and newest is not None and then < newest


def _figure(balance: Mapping[str, Any], code: str, view: str) -> object:
    return balance.get(code, {}).get(view)


def sparkline(figures: Sequence[Decimal]) -> str:
    """The course of some figures, the lowest as ``▁``, the highest as ``█``."""
    if not figures:
        return ""
    low, high = min(figures), max(figures)
    if low == high:
        return SPARKS[0] * len(figures)
    return "".join(SPARKS[int((each - low) / (high - low) * (len(SPARKS) - 1))] for each in figures)


# -- drawing --------------------------------------------------------------------------------


def render(
    panes: Sequence[Pane], now: float, console: Console, height: int | None = None
) -> RenderableType:
    """Everything as it is now, in at most that many lines; what does not fit is counted."""
    if height is None:
        return Group(*(_drawn(pane, now, console, with_gap=True) for pane in panes))
    shown = list(panes)
    while True:
        left_out = len(panes) - len(shown)
        space = height - bool(left_out)
        for with_account, with_gap in ((True, True), (True, False), (False, False)):
            rows = _rows(shown, now, console, space, with_account, with_gap)
            if all(
                count >= min(FEW_ROWS, wanted)
                for count, wanted in zip(rows, map(_wanted, shown), strict=True)
            ):
                break
        fits = all(count > 0 or not _wanted(pane) for count, pane in zip(rows, shown, strict=True))
        if fits or len(shown) == 1:
            break
        shown.pop()
    parts: list[RenderableType] = [
        _drawn(pane, now, console, rows=count, with_account=with_account, with_gap=with_gap)
        for pane, count in zip(shown, rows, strict=True)
    ]
    if left_out:
        parts.append(Text(f"and {left_out} more {_plural('account', left_out)}", "dim"))
    return Group(*parts)


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _wanted(pane: Pane) -> int:
    return 0 if pane.balance is None else len(pane.balance["total"])


def _rows(
    panes: Sequence[Pane],
    now: float,
    console: Console,
    height: int,
    with_account: bool,
    with_gap: bool,
) -> list[int]:
    """How many currencies of each account fit; less than all leave a line for their count."""
    for pane in panes:
        drawn = _drawn(pane, now, console, rows=0, with_account=with_account, with_gap=with_gap)
        height -= len(console.render_lines(drawn, pad=False)) - (1 if _wanted(pane) else 0)
    rows = [0] * len(panes)
    wanted = [_wanted(pane) for pane in panes]
    # A line each in turn, so that no account takes all. An account's last line is for its last
    # currency or for the count of the rest.
    while height > 0 and rows != wanted:
        for index in range(len(panes)):
            if rows[index] < wanted[index] and height > 0:
                rows[index] += 1
                height -= 1
    return [
        count if count == whole else max(count - 1, 0)
        for count, whole in zip(rows, wanted, strict=True)
    ]


def _drawn(
    pane: Pane,
    now: float,
    console: Console,
    *,
    rows: int | None = None,
    with_account: bool = True,
    with_gap: bool = False,
) -> Group:
    head = heading(pane.name, pane.exchange_id).append("  ")
    if pane.summary is not None:
        head.append_text(state_text(pane.summary)).append("  ")
    connection, reason = _connection(pane)
    if pane.balance is not None:
        connection += f", {now - pane.seen:.0f} s old"
    parts: list[RenderableType] = [head.append(connection, "dim")]
    if reason:
        text = Text(printable(reason), "red")
        if rows is not None:
            text.truncate(REASON_LINES * console.width - 1, overflow="ellipsis")
        parts.append(text)
    if pane.balance is not None:
        codes = list(pane.balance["total"])
        shown = codes if rows is None else codes[:rows]
        fresh = {key for key, then in pane.changed.items() if now - then < HIGHLIGHT_SECONDS}
        if not codes:
            parts.append(Text("the account holds no currency", "dim"))
        else:
            parts.append(
                balance_table(
                    pane.balance,
                    pane.policy,
                    console=console,
                    may_drop=LEAST_FIRST,
                    codes=shown,
                    highlighted=fresh,
                )
            )
        if hidden := len(codes) - len(shown):
            parts.append(Text(f"and {hidden} more {_plural('currency', hidden)}", "dim"))
    if pane.summary is not None and with_account:
        parts.append(_account(pane, pane.summary, console.width))
    return Group(*parts, *([Text("")] if with_gap else []))


def _connection(pane: Pane) -> tuple[str, str]:
    """How balances come, and why there is none or no newer one."""
    if pane.status is None:
        return f"polled every {POLL_SECONDS:g} s", pane.problem
    status = pane.status()
    if status.state is StreamState.LIVE:
        return "live", pane.problem if status.doubted is not None else ""
    words = "reconnecting" if status.connections else "connecting"
    if pane.polled:
        words += f", polled every {POLL_SECONDS:g} s"
    return words, pane.problem or status.reason or ""


def _account(pane: Pane, summary: AccountSummary, width: int) -> Text:
    """One line on the whole account, as much of it as fits."""
    line = Text.assemble(f"equity {amount_text(summary.equity, precise=False)}")
    used = bar(summary.initial_margin, summary.equity)
    more = [
        Text.assemble("  margin in use ", used if used else Text("none")),
        Text(f"  maintenance margin rate {summary.maintenance_margin_rate:.4%}"),
        Text(f"  {sparkline(list(pane.equities))}", "cyan"),
    ]
    for part in more:
        if line.cell_len + part.cell_len <= width:
            line.append_text(part)
    return line


# -- following ------------------------------------------------------------------------------


async def follow(
    exchange: Any, pane: Pane, params: Mapping[str, Any], changed: Callable[[Pane], None]
) -> None:
    """Keep a pane up to date: by push where there is one, and by polling while it is down.

    Args:
        exchange: asynchronous, with ``number`` ``str``.
        pane: what is kept up to date.
        params: of ``watch_balance()`` and ``fetch_balance()``.
        changed: called after each change.

    Raises:
        ccxt.BaseError: the keys or settings are refused.
    """

    def take(balance: dict[str, Any], polled: bool) -> None:
        if pane.take(balance, _summary(exchange, balance), polled):
            changed(pane)

    async def poll() -> None:
        try:
            take(await exchange.fetch_balance(params), polled=True)
        except (NetworkError, BadResponse) as error:
            pane.problem = str(error)

    if not hasattr(exchange, "watch_balances"):
        while True:
            await poll()
            await asyncio.sleep(POLL_SECONDS)
    pane.status = exchange.stream_status
    balances = exchange.watch_balances(params)
    while True:
        pushed = asyncio.ensure_future(anext(balances))
        try:
            while not (await asyncio.wait({pushed}, timeout=POLL_SECONDS))[0]:
                if exchange.stream_status().state is not StreamState.LIVE:
                    await poll()
            take(pushed.result(), polled=False)
        except (NetworkError, BadResponse) as error:
            # The stream goes on; only the iterator has ended.
            pane.problem, balances = str(error), exchange.watch_balances(params)
        finally:
            pushed.cancel()


def _summary(exchange: Any, balance: Mapping[str, Any]) -> AccountSummary | None:
    if not hasattr(exchange, "parse_account_summary"):
        return None
    try:
        summary: AccountSummary = exchange.parse_account_summary(balance["info"])
    except BadResponse:
        return None
    return summary


async def watch(
    host: ExchangeHost,
    accounts: Mapping[str, Account],
    free: FreePolicy | None,
    *,
    as_json: bool,
    changes: int | None,
    console: Console,
) -> list[str]:
    """Show changes until cancelled, or until there were that many, or no account is left.

    Returns:
        Why accounts could not be watched any longer: keys or settings that are refused.

    Raises:
        BrokenPipeError: nobody reads standard output any more.
    """
    enough, gone, counted = asyncio.Event(), asyncio.Event(), 0

    def changed(pane: Pane) -> None:
        nonlocal counted
        if enough.is_set():
            return
        counted += 1
        if as_json:
            line = {"exchange": pane.exchange_id, "account": pane.name, "balance": pane.balance}
            try:
                sys.stdout.write(json.dumps(line, default=str) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                gone.set()
        if changes is not None and counted >= changes:
            enough.set()

    panes, exchanges, followers = [], [], []
    for name, account in accounts.items():
        config = {**account.config, "number": str}
        exchange = host.create(account.exchange, config, asynchronous=True)
        own = account.exchange in VENUES
        policy = (free or exchange.options["free"]) if own else ""
        panes.append(Pane(name, account.exchange, policy))
        exchanges.append(exchange)
        params = {"free": free} if own and free else {}
        followers.append(asyncio.create_task(follow(exchange, panes[-1], params, changed)))
    ends = [asyncio.create_task(event.wait()) for event in (enough, gone)]
    try:
        if as_json:
            with _pipe_watched(gone):
                await _until(ends, followers)
        else:
            await _drawn_until(ends, followers, panes, console)
    finally:
        for task in (*followers, *ends):
            task.cancel()
        ended = await asyncio.gather(*followers, return_exceptions=True)
        for exchange in exchanges:
            await exchange.close()
    if gone.is_set():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return [str(error) for error in ended if isinstance(error, Exception)]


async def _until(
    ends: Sequence[asyncio.Task[Any]], followers: Sequence[asyncio.Task[None]]
) -> None:
    """Wait for one of the ends, or until no account is followed any more."""
    waiting: set[asyncio.Task[Any]] = {*ends, *followers}
    while not any(end.done() for end in ends) and len(waiting) > len(ends):
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


async def _drawn_until(
    ends: Sequence[asyncio.Task[Any]],
    followers: Sequence[asyncio.Task[None]],
    panes: Sequence[Pane],
    console: Console,
) -> None:
    """The same with the live view on the terminal, which the last state stays on."""
    view = Live(
        get_renderable=lambda: render(panes, time.monotonic(), console, console.height),
        console=console,
        screen=True,
        refresh_per_second=REFRESH_PER_SECOND,
    )
    try:
        with _silent_log(), view:
            await _until(ends, followers)
    finally:
        console.print(render(panes, time.monotonic(), console))


@contextmanager
def _silent_log() -> Iterator[None]:
    """Keep the package's warnings from the screen: the view says why it waits."""
    logger, handler = logging.getLogger("sunx_adapter"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _pipe_watched(gone: asyncio.Event) -> Iterator[None]:
    """Notice at once, and not at the next change, that nobody reads standard output any more."""
    loop = asyncio.get_running_loop()
    try:
        output = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(output).st_mode)
        if is_pipe:
            # A pipe's writing end becomes readable when its reader closes.
            loop.add_reader(output, gone.set)
    except (OSError, NotImplementedError):
        is_pipe = False
    try:
        yield
    finally:
        if is_pipe:
            loop.remove_reader(output)
