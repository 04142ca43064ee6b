"""The live view: what changes, drawn as it changes, or written line by line as JSON."""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from ccxt.base.errors import BadResponse, BaseError, NetworkError, NotSupported
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sunx_adapter.host import ExchangeHost
from sunx_adapter.protocol.account import AccountSummary
from sunx_adapter.show import amount_text, bar, state_text
from sunx_adapter.text import printable

POLL_SECONDS: Final = 3.0
HIGHLIGHT_SECONDS: Final = 2.0
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARK_COUNT: Final = 40
REFRESH_PER_SECOND: Final = 4


@dataclass(slots=True)
class Pane:
    """What is shown of one exchange.

    Attributes:
        exchange_id: whose.
        balance: the newest, figures as text; ``None`` before the first.
        summary: the account behind it, where the exchange tells of one.
        connection: how the figures come, for people.
        problem: why there are none, if that is so.
        seen: when the newest came, on :func:`time.monotonic`'s clock.
        changed: when each figure last changed, by code and view.
        equities: the latest account equities, for the sparkline.
    """

    exchange_id: str
    balance: dict[str, Any] | None = None
    summary: AccountSummary | None = None
    connection: str = "connecting"
    problem: str = ""
    seen: float = 0.0
    changed: dict[tuple[str, str], float] = field(default_factory=dict)
    equities: deque[Decimal] = field(default_factory=lambda: deque(maxlen=SPARK_COUNT))

    def take(self, balance: dict[str, Any], summary: AccountSummary | None) -> bool:
        """Take in a balance; whether any figure is other than before."""
        now = time.monotonic()
        before = self.balance["total"] if self.balance else None
        different = {
            (code, view)
            for code in balance["total"]
            for view in ("free", "used", "total")
            if before is not None
            and self.balance
            and _figure(self.balance, code, view) != _figure(balance, code, view)
        }
        gone = before is not None and before.keys() != balance["total"].keys()
        state_is_new = (
            self.summary is not None
            and summary is not None
            and (self.summary.state is not summary.state)
        )
        self.changed.update(dict.fromkeys(different, now))
        first = self.balance is None
        self.balance, self.summary, self.seen, self.problem = balance, summary, now, ""
        if summary is not None:
            self.equities.append(summary.equity)
        return first or bool(different) or gone or state_is_new


def _figure(balance: Mapping[str, Any], code: str, view: str) -> object:
    return balance.get(code, {}).get(view)


def sparkline(figures: list[Decimal]) -> str:
    """The course of some figures, the lowest as ``▁``, the highest as ``█``."""
    if not figures:
        return ""
    low, high = min(figures), max(figures)
    if low == high:
        return SPARKS[0] * len(figures)
    return "".join(SPARKS[int((each - low) / (high - low) * (len(SPARKS) - 1))] for each in figures)


def render(panes: list[Pane], now: float) -> RenderableType:
    """Everything, as it stands."""
    return Group(*(part for pane in panes for part in _pane(pane, now)))


def _pane(pane: Pane, now: float) -> list[RenderableType]:
    head = Text.from_markup(f"[bold]{pane.exchange_id}[/]  ")
    if pane.summary is not None:
        head.append_text(Text.from_markup(state_text(pane.summary)))
    age = f"  {now - pane.seen:.0f} s old" if pane.balance is not None else ""
    head.append(f"{age}  {pane.connection}", style="dim")
    parts: list[RenderableType] = [head]
    if pane.problem:
        parts.append(Text(printable(pane.problem), style="red"))
    if pane.balance is not None:
        parts.append(_table(pane, now))
    if pane.summary is not None:
        parts.append(_account(pane, pane.summary))
    return [*parts, Text("")]


def _table(pane: Pane, now: float) -> Table:
    balance = pane.balance or {}
    debts = balance.get("debt", {})
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("currency")
    for heading in ("free", "used", "total", "debt"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("in use")
    for code in balance.get("total", {}):
        figures = [balance[code].get(view) for view in ("free", "used", "total")]
        cells = []
        for view, figure in zip(("free", "used", "total"), figures, strict=True):
            fresh = now - pane.changed.get((code, view), -HIGHLIGHT_SECONDS) < HIGHLIGHT_SECONDS
            text = amount_text(figure, precise=False, up=view == "used")
            cells.append(Text(text, style="black on yellow" if fresh else ""))
        owed = Text(amount_text(debts[code], precise=False, up=True)) if code in debts else Text("")
        owed.stylize("red")
        share = Text.from_markup(bar(figures[1], figures[2]))
        table.add_row(Text(printable(code)), *cells, owed, share)
    return table


def _account(pane: Pane, summary: AccountSummary) -> Text:
    text = Text("margin in use ")
    text.append_text(Text.from_markup(bar(summary.initial_margin, summary.equity) or "none"))
    text.append(f"  maintenance margin rate {summary.maintenance_margin_rate:.4%}")
    text.append(f"  equity {amount_text(summary.equity, precise=False)} ")
    text.append(sparkline(list(pane.equities)), style="cyan")
    return text


async def follow(
    exchange: Any, pane: Pane, params: Mapping[str, Any], changed: Callable[[Pane], None]
) -> None:
    """Keep a pane up to date: by push where there is one, else by polling.

    Args:
        exchange: asynchronous, with ``number`` ``str``.
        pane: what is kept up to date.
        params: of ``watch_balance()`` and ``fetch_balance()``.
        changed: called after each change.
    """

    def take(balance: dict[str, Any]) -> None:
        if pane.take(balance, _summary(exchange, balance)):
            changed(pane)

    while True:
        try:
            if exchange.has.get("watchBalance"):
                async for balance in exchange.watch_balances(params):
                    pane.connection = "live"
                    take(balance)
            pane.connection = f"polled every {POLL_SECONDS:g} s"
            take(await exchange.fetch_balance(params))
            await asyncio.sleep(POLL_SECONDS)
        except (NetworkError, NotSupported, BadResponse) as error:
            # The push may be down while reading works; the next turn tries it again.
            pane.connection, pane.problem = "polled, the push is down", str(error)
            try:
                take(await exchange.fetch_balance(params))
            except BaseError as second:
                pane.problem = str(second)
            await asyncio.sleep(POLL_SECONDS)


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
    configs: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, Any],
    *,
    as_json: bool,
    changes: int | None,
    console: Console,
) -> list[str]:
    """Show changes until cancelled, or until there were that many, or nobody is left to watch.

    Returns:
        What ended the watching of exchanges whose keys or settings are refused.
    """
    panes = [Pane(exchange_id) for exchange_id in configs]
    enough, counted = asyncio.Event(), 0

    def changed(pane: Pane) -> None:
        nonlocal counted
        counted += 1
        if as_json:
            line = {"exchange": pane.exchange_id, "balance": pane.balance}
            sys.stdout.write(json.dumps(line, default=str) + "\n")
            sys.stdout.flush()
        if changes is not None and counted >= changes:
            enough.set()

    exchanges = [
        host.create(exchange_id, {**config, "number": str}, asynchronous=True)
        for exchange_id, config in configs.items()
    ]
    followers = [
        asyncio.create_task(follow(exchange, pane, params, changed))
        for exchange, pane in zip(exchanges, panes, strict=True)
    ]
    done = asyncio.create_task(enough.wait())
    try:
        if as_json:
            await _until(done, followers)
        else:
            view = Live(
                get_renderable=lambda: render(panes, time.monotonic()),
                console=console,
                screen=True,
                refresh_per_second=REFRESH_PER_SECOND,
            )
            with view:
                await _until(done, followers)
    finally:
        for task in (*followers, done):
            task.cancel()
        ended = await asyncio.gather(*followers, return_exceptions=True)
        for exchange in exchanges:
            await exchange.close()
    return [str(error) for error in ended if isinstance(error, Exception)]


async def _until(done: asyncio.Task[Any], followers: list[asyncio.Task[None]]) -> None:
    waiting: set[asyncio.Task[Any]] = {done, *followers}
    while not done.done() and len(waiting) > 1:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
