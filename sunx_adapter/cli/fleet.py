"""``sunx-adapter fleet``."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from heapq import nlargest
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sunx_adapter.cli.options import JsonOption, examples
from sunx_adapter.cli.output import UsageError, err, error_text, out, print_error
from sunx_adapter.keys import KeysError
from sunx_adapter.text import printable
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Group
    from rich.table import Table

    from sunx_adapter.fleet import Fleet

    _Balances = AsyncIterator[tuple[str, dict[str, Any] | Exception]]

SHOWN_RATES: Final = 10
SANDBOX_LIFE_SECONDS: Final = 1.0
REFRESH_PER_SECOND: Final = 2

EPILOG = examples(
    "sunx-adapter fleet --sandbox 1000",
    "sunx-adapter fleet accounts.toml",
    "sunx-adapter fleet accounts.toml --scheduler tls://scheduler:8786 --watch",
)


def fleet(
    accounts: Annotated[
        Path | None,
        typer.Argument(metavar="ACCOUNTS", help="The keys file, with one table per account."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The scheduler of a Dask cluster. Default: a cluster on this machine. For tls://, "
            "set the certificates in Dask's configuration.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes on this machine. Default: one per core."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show changes, too, until Ctrl-C.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --watch: read each account every SECONDS instead of using the push channel.",
        ),
    ] = None,
    sandbox: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Use a local sandbox with N accounts; no keys needed."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read thousands of accounts with many processes, and add up their balances.

    With --json, print a line for each balance or change, and the summary as the last line.
    The exit status is 0 only if all accounts were read.
    """
    import asyncio  # noqa: PLC0415 - slow

    with ExitStack() as stack:
        try:
            if find_spec("distributed") is None:
                raise UsageError("this command needs an extra: pip install sunx-adapter[fleet]")
            if (accounts is None) == (sandbox is None):
                raise UsageError("name the keys file, or add --sandbox N")
            if watch and not as_json and not out().is_terminal:
                raise UsageError("the live view needs a terminal; add --json for a file or a pipe")
            if every is not None and not every > 0:
                raise UsageError("--every must be above 0")
            from sunx_adapter.fleet import Fleet  # noqa: PLC0415 - of an extra

            file = accounts or _sandbox_file(stack, sandbox or 0, changing=watch)
            source = Fleet(file, scheduler=scheduler, workers=workers, number=str)
            summary = Summary(len(source.names))
            balances = _balances(source, watch=watch, every=every)
            show = _lines if as_json else _live if watch else _progress
            try:
                asyncio.run(show(balances, summary))
            finally:
                if as_json:
                    _write({"summary": summary.as_json()})
        except (UsageError, KeysError) as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        except Exception as error:  # noqa: BLE001 - any error is shown
            print_error(error_text(error))
            raise typer.Exit(1) from None
    if summary.failed or len(summary.totals) < summary.accounts:
        raise typer.Exit(1)


@dataclass
class Summary:
    """The summary of all accounts.

    Attributes:
        accounts: the number of accounts.
        totals: by account name, the equity per currency of its newest balance.
        rates: by account name, the maintenance margin rate if it is known.
        failed: by account name, the class and message of the exception, if it is the newest value.
        arrived: the number of received balances.
        began: the start, on :func:`time.monotonic`'s clock.
    """

    accounts: int
    totals: dict[str, dict[str, str]] = field(default_factory=dict)
    rates: dict[str, Decimal] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    arrived: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, name: str, balance: dict[str, Any] | Exception) -> None:
        """Add an account's newest balance or exception."""
        if isinstance(balance, Exception):
            self.failed[name] = error_text(balance)
            return
        self.failed.pop(name, None)
        self.arrived += 1
        self.totals[name] = {code: total for code, total in balance["total"].items() if total}
        if (rate := _margin_rate(balance["info"])) is not None:
            self.rates[name] = rate

    def equity(self) -> dict[str, Decimal]:
        """The sum of the equity of all accounts, by currency."""
        sums: dict[str, Decimal] = {}
        for totals in self.totals.values():
            for code, total in totals.items():
                sums[code] = sums.get(code, Decimal(0)) + Decimal(total)
        return dict(sorted(sums.items(), key=lambda item: (item[0] != "USDT", item[0])))

    def reasons(self) -> dict[str, int]:
        """The number of failed accounts, by the class of the exception."""
        return dict(Counter(text.partition(":")[0] for text in self.failed.values()).most_common())

    def highest_rates(self) -> list[tuple[str, Decimal]]:
        """The accounts closest to liquidation."""
        return nlargest(SHOWN_RATES, self.rates.items(), key=lambda item: item[1])

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON."""
        return {
            "accounts": self.accounts,
            "read": len(self.totals.keys() - self.failed.keys()),
            "failed": self.reasons(),
            "equity": {code: f"{total:f}" for code, total in self.equity().items()},
            "highest_maintenance_margin_rates": {
                name: f"{rate:f}" for name, rate in self.highest_rates()
            },
            "seconds": round(time.monotonic() - self.began, 3),
        }


def _margin_rate(info: Any) -> Decimal | None:
    """The maintenance margin rate; ``None`` for exchanges of other packages."""
    from ccxt.base.errors import BadResponse  # noqa: PLC0415 - slow

    from sunx_adapter.protocol.account import read_account, summarize  # noqa: PLC0415
    from sunx_adapter.protocol.document import document_of  # noqa: PLC0415

    try:
        return summarize(read_account(document_of(info))).maintenance_margin_rate
    except (BadResponse, TypeError):
        return None


async def _balances(source: Fleet, *, watch: bool, every: float | None) -> _Balances:
    async with source:
        balances = source.watch_balances(every=every) if watch else source.fetch_balances()
        async for name, balance in balances:
            yield name, balance


async def _lines(balances: _Balances, summary: Summary) -> None:
    """Print a line of JSON for each balance."""
    async for name, balance in balances:
        summary.add(name, balance)
        if isinstance(balance, Exception):
            _write({"account": name, "error": error_text(balance)})
        else:
            _write({"account": name, "balance": balance})


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line, default=str), flush=True)  # noqa: T201


async def _progress(balances: _Balances, summary: Summary) -> None:
    """Show a progress bar, then the summary."""
    from rich.progress import (  # noqa: PLC0415 - slow
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    further = (MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, *further, console=err(), transient=True, disable=not err().is_terminal
    ) as progress:
        task = progress.add_task("starting workers", total=summary.accounts)
        async for name, balance in balances:
            summary.add(name, balance)
            progress.update(task, advance=1, description="reading accounts")
    out().print(view(summary))


async def _live(balances: _Balances, summary: Summary) -> None:
    """Show the summary as it changes; the last one stays on the screen."""
    from rich.live import Live  # noqa: PLC0415 - slow

    shown = Live(
        get_renderable=lambda: view(summary),
        console=out(),
        screen=True,
        refresh_per_second=REFRESH_PER_SECOND,
    )
    try:
        with shown:
            async for name, balance in balances:
                summary.add(name, balance)
    finally:
        out().print(view(summary))


def view(summary: Summary) -> Group:
    """The summary as tables."""
    from rich.console import Group  # noqa: PLC0415 - slow
    from rich.text import Text  # noqa: PLC0415

    from sunx_adapter.cli.table import amount_text  # noqa: PLC0415

    content = summary.as_json()
    head = Text.assemble(
        (f"{content['read']:,} of {summary.accounts:,} accounts read", "bold"),
        f", {summary.arrived:,} balances in {content['seconds']:,.1f} s",
    )
    failed = _table("failed", "accounts", "for example")
    for reason, count in summary.reasons().items():
        text = next(text for text in summary.failed.values() if text.startswith(reason))
        failed.add_row(reason, f"{count:,}", printable(text.partition(": ")[2]), style="red")
    equity = _table("currency", "equity")
    for code, total in summary.equity().items():
        equity.add_row(printable(code), amount_text(total, precise=False))
    rates = _table("account", "maintenance margin rate")
    for name, rate in summary.highest_rates():
        rates.add_row(printable(name), f"{rate:.4%}")
    tables = [table for table in (failed, equity, rates) if table.row_count]
    return Group(head, *(part for table in tables for part in ("", table)))


def _table(first: str, second: str, *more: str) -> Table:
    from rich.table import Table  # noqa: PLC0415 - slow

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    table.add_column(second, justify="right")
    for name in more:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    return table


def _sandbox_file(stack: ExitStack, count: int, *, changing: bool) -> Path:
    """Start a sandbox with ``count`` accounts, half of each exchange; returns its keys file."""
    from sunx_adapter.sandbox import Sandbox  # noqa: PLC0415 - slow

    local = stack.enter_context(Sandbox(count, life=SANDBOX_LIFE_SECONDS if changing else None))
    file = Path(stack.enter_context(TemporaryDirectory())) / "accounts.toml"
    file.touch(mode=0o600)
    with file.open("w", encoding="utf-8") as text:
        for account, exchange_id in zip(local.accounts, cycle(VENUES), strict=False):
            config = local.config(exchange_id, account.name)
            urls = {f"urls.api.{kind}": url for kind, url in config.pop("urls")["api"].items()}
            table = {"exchange": exchange_id, **config, **urls}
            lines = (f"{key} = {json.dumps(value)}" for key, value in table.items())
            text.write("\n".join((f"[{account.name}]", *lines, "")))
    return file
