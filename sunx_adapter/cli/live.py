"""The live view of ``watch``: draws balances as they change, or writes them as lines of JSON."""

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
    AMOUNTS,
    OPTIONAL_COLUMNS,
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
SPARKLINE_LEVELS: Final = "▁▂▃▄▅▆▇█"
SPARKLINE_LENGTH: Final = 40
REFRESH_PER_SECOND: Final = 4
MAX_REASON_LINES: Final = 3
MIN_ROWS: Final = 3
"""Other lines are left out before an account shows fewer currencies than this."""


@dataclass(slots=True)
class Pane:
    """The part of the view that shows one account.

    Attributes:
        name: the account's name.
        exchange_id: the id of its exchange.
        policy: the meaning of ``free``; empty if unknown.
        status: returns the state of the push connection; ``None`` if the exchange has no push
            channel.
        balance: the newest balance, with amounts as text; ``None`` before the first.
        summary: the account's summary; ``None`` if unknown.
        polled: whether the newest balance was polled, not pushed.
        problem: the error since the newest balance; empty if there was none.
        received_at: when the newest balance arrived, on :func:`time.monotonic`'s clock.
        changed_at: when each amount last changed, by currency code and name of the amount.
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
    received_at: float = 0.0
    changed_at: dict[tuple[str, str], float] = field(default_factory=dict)
    equities: deque[Decimal] = field(default_factory=lambda: deque(maxlen=SPARKLINE_LENGTH))

    def update(self, balance: dict[str, Any], summary: AccountSummary | None, polled: bool) -> bool:
        """Replace the balance, unless the new one is older; returns whether anything changed."""
        before, now = self.balance, time.monotonic()
        if before is not None and _is_older(balance, before):
            return False
        different = {
            (code, name)
            for code in balance["total"]
            for name in AMOUNTS
            if before is not None and _amount(before, code, name) != _amount(balance, code, name)
        }
        other_codes = before is None or before["total"].keys() != balance["total"].keys()
        other_state = (self.summary and self.summary.state) != (summary and summary.state)
        self.changed_at.update(dict.fromkeys(different, now))
        self.balance, self.summary, self.polled = balance, summary, polled
        self.received_at, self.problem = now, ""
        if summary is not None:
            self.equities.append(summary.equity)
        return bool(different) or other_codes or other_state


def _is_older(balance: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    time_ms, other_ms = balance.get("timestamp"), other.get("timestamp")
    return time_ms is not None and other_ms is not None and time_ms < other_ms


def _amount(balance: Mapping[str, Any], code: str, name: str) -> object:
    return balance.get(code, {}).get(name)


def sparkline(numbers: Sequence[Decimal]) -> str:
    """A line chart in one line of text: the lowest number is ``▁``, the highest ``█``."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    if low == high:
        return SPARKLINE_LEVELS[0] * len(numbers)
    top = len(SPARKLINE_LEVELS) - 1
    return "".join(SPARKLINE_LEVELS[int((each - low) / (high - low) * top)] for each in numbers)


# -- drawing --------------------------------------------------------------------------------


def render(
    panes: Sequence[Pane], now: float, console: Console, height: int | None = None
) -> RenderableType:
    """The view in at most ``height`` lines; accounts and currencies that do not fit are counted."""
    if height is None:
        return Group(*(_draw_pane(pane, now, console, with_gap=True) for pane in panes))
    shown = list(panes)
    while True:
        left_out = len(panes) - len(shown)
        space = height - bool(left_out)
        for with_account, with_gap in ((True, True), (True, False), (False, False)):
            rows = _rows(shown, now, console, space, with_account, with_gap)
            if all(
                count >= min(MIN_ROWS, all_rows)
                for count, all_rows in zip(rows, map(_row_count, shown), strict=True)
            ):
                break
        fits = all(n > 0 or not _row_count(pane) for n, pane in zip(rows, shown, strict=True))
        if fits or len(shown) == 1:
            break
        shown.pop()
    parts: list[RenderableType] = [
        _draw_pane(pane, now, console, rows=count, with_account=with_account, with_gap=with_gap)
        for pane, count in zip(shown, rows, strict=True)
    ]
    if left_out:
        parts.append(Text(f"and {left_out} more {_plural('account', left_out)}", "dim"))
    return Group(*parts)


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _row_count(pane: Pane) -> int:
    return 0 if pane.balance is None else len(pane.balance["total"])


def _rows(
    panes: Sequence[Pane],
    now: float,
    console: Console,
    height: int,
    with_account: bool,
    with_gap: bool,
) -> list[int]:
    """How many currencies of each account fit; if not all fit, one line is kept for their count."""
    for pane in panes:
        drawn = _draw_pane(pane, now, console, rows=0, with_account=with_account, with_gap=with_gap)
        height -= len(console.render_lines(drawn, pad=False)) - (1 if _row_count(pane) else 0)
    rows = [0] * len(panes)
    all_rows = [_row_count(pane) for pane in panes]
    # The accounts get lines in turn, so that none gets them all. An account's last line shows its
    # last currency, or the number of hidden ones.
    while height > 0 and rows != all_rows:
        for index in range(len(panes)):
            if rows[index] < all_rows[index] and height > 0:
                rows[index] += 1
                height -= 1
    return [
        count if count == whole else max(count - 1, 0)
        for count, whole in zip(rows, all_rows, strict=True)
    ]


def _draw_pane(
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
        connection += f", {now - pane.received_at:.0f} s old"
    parts: list[RenderableType] = [head.append(connection, "dim")]
    if reason:
        text = Text(printable(reason), "red")
        if rows is not None:
            text.truncate(MAX_REASON_LINES * console.width - 1, overflow="ellipsis")
        parts.append(text)
    if pane.balance is not None:
        codes = list(pane.balance["total"])
        shown = codes if rows is None else codes[:rows]
        fresh = {key for key, then in pane.changed_at.items() if now - then < HIGHLIGHT_SECONDS}
        if not codes:
            parts.append(Text("the account holds no currency", "dim"))
        else:
            parts.append(
                balance_table(
                    pane.balance,
                    pane.policy,
                    console=console,
                    may_drop=OPTIONAL_COLUMNS,
                    codes=shown,
                    highlighted=fresh,
                )
            )
        if hidden := len(codes) - len(shown):
            parts.append(Text(f"and {hidden} more {_plural('currency', hidden)}", "dim"))
    if pane.summary is not None and with_account:
        parts.append(_account_line(pane, pane.summary, console.width))
    return Group(*parts, *([Text("")] if with_gap else []))


def _connection(pane: Pane) -> tuple[str, str]:
    """How balances are received, and the reason if there is no newer one."""
    if pane.status is None:
        return f"polled every {POLL_SECONDS:g} s", pane.problem
    status = pane.status()
    if status.state is StreamState.LIVE:
        return "live", pane.problem if status.doubted is not None else ""
    text = "reconnecting" if status.connections else "connecting"
    if pane.polled:
        text += f", polled every {POLL_SECONDS:g} s"
    return text, pane.problem or status.reason or ""


def _account_line(pane: Pane, summary: AccountSummary, width: int) -> Text:
    """One line about the whole account; parts that do not fit are left out."""
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
    """Keep a pane up to date: by push, and by polling while the push channel is down.

    Args:
        exchange: an asynchronous exchange with ``number`` ``str``.
        pane: the pane to update.
        params: the parameters of ``watch_balance()`` and ``fetch_balance()``.
        changed: called after each change.

    Raises:
        ccxt.BaseError: the venue refuses the keys or settings.
    """

    def update(balance: dict[str, Any], polled: bool) -> None:
        if pane.update(balance, _summary(exchange, balance), polled):
            changed(pane)

    async def poll() -> None:
        try:
            update(await exchange.fetch_balance(params), polled=True)
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
            update(pushed.result(), polled=False)
        except (NetworkError, BadResponse) as error:
            # Only the iterator has ended, not the stream.
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
    """Show changes until cancelled, until ``changes`` were shown, or until every account failed.

    Returns:
        The errors of the failed accounts: the venue refused their keys or settings.

    Raises:
        BrokenPipeError: the reader of standard output has closed it.
    """
    enough, output_closed, count = asyncio.Event(), asyncio.Event(), 0

    def changed(pane: Pane) -> None:
        nonlocal count
        if enough.is_set():
            return
        count += 1
        if as_json:
            line = {"exchange": pane.exchange_id, "account": pane.name, "balance": pane.balance}
            try:
                sys.stdout.write(json.dumps(line, default=str) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                output_closed.set()
        if changes is not None and count >= changes:
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
    ends = [asyncio.create_task(event.wait()) for event in (enough, output_closed)]
    try:
        if as_json:
            with _detect_closed_output(output_closed):
                await _wait(ends, followers)
        else:
            await _draw_and_wait(ends, followers, panes, console)
    finally:
        for task in (*followers, *ends):
            task.cancel()
        ended = await asyncio.gather(*followers, return_exceptions=True)
        for exchange in exchanges:
            await exchange.close()
    if output_closed.is_set():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return [str(error) for error in ended if isinstance(error, Exception)]


async def _wait(ends: Sequence[asyncio.Task[Any]], followers: Sequence[asyncio.Task[None]]) -> None:
    """Wait until one of ``ends`` or all of ``followers`` are done."""
    waiting: set[asyncio.Task[Any]] = {*ends, *followers}
    while not any(end.done() for end in ends) and len(waiting) > len(ends):
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


async def _draw_and_wait(
    ends: Sequence[asyncio.Task[Any]],
    followers: Sequence[asyncio.Task[None]],
    panes: Sequence[Pane],
    console: Console,
) -> None:
    """Wait with the live view on the terminal; the last state stays on the screen."""
    view = Live(
        get_renderable=lambda: render(panes, time.monotonic(), console, console.height),
        console=console,
        screen=True,
        refresh_per_second=REFRESH_PER_SECOND,
    )
    try:
        with _silent_log(), view:
            await _wait(ends, followers)
    finally:
        console.print(render(panes, time.monotonic(), console))


@contextmanager
def _silent_log() -> Iterator[None]:
    """Hide the package's warnings, which would disturb the view; the view shows their reasons."""
    logger, handler = logging.getLogger("sunx_adapter"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _detect_closed_output(closed: asyncio.Event) -> Iterator[None]:
    """Set the event as soon as the reader of standard output closes it, not at the next change."""
    loop = asyncio.get_running_loop()
    try:
        output = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(output).st_mode)
        if is_pipe:
            # A pipe's writing end becomes readable when the reader closes its end.
            loop.add_reader(output, closed.set)
    except (OSError, NotImplementedError):
        is_pipe = False
    try:
        yield
    finally:
        if is_pipe:
            loop.remove_reader(output)
