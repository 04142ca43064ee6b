"""The table and the heading of an account, for ``balance`` and ``watch``.

Amounts are cut to 8 decimal places, marked with ``…``. They are never cut to fit the terminal: a
column is left out instead.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any, Final

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sunx_adapter.cli.output import out
from sunx_adapter.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rich.console import Console

    from sunx_adapter.protocol.account import AccountSummary

BAR_WIDTH: Final = 12
PLACES: Final = Decimal("0.00000001")
MAX_WIDTH: Final = 1000
AMOUNTS: Final = ("free", "used", "total")

OPTIONAL_COLUMNS: Final = ("in use", "used", "debt", "total")
"""The columns that may be left out, the least important first."""


def amount_text(amount: object, *, precise: bool, up: bool = False) -> str:
    """An amount as text, unless ``precise`` cut to 8 decimal places and marked with ``…``.

    It is rounded down, or ``up`` for used and owed amounts: never in the user's favour.
    """
    if amount is None:
        return "unknown"
    exact = Decimal(str(amount))
    shown = exact if precise else exact.quantize(PLACES, ROUND_CEILING if up else ROUND_FLOOR)
    if shown == exact:
        return f"{exact:,f}"
    return f"{shown:,f}…"


def bar(used: object, total: object) -> Text:
    """A bar with the share of a total that is used; empty if unknown."""
    if used is None or total is None:
        return Text()
    taken, whole = Decimal(str(used)), Decimal(str(total))
    if whole <= 0:
        return Text("all", "red") if taken > 0 else Text()
    share = taken / whole
    filled = round(min(max(share, Decimal(0)), Decimal(1)) * BAR_WIDTH)
    colour = "green" if share < Decimal("0.5") else "yellow" if share < Decimal("0.8") else "red"
    return Text.assemble(
        ("█" * filled, colour), ("░" * (BAR_WIDTH - filled), "dim"), f" {share:.0%}"
    )


def state_text(summary: AccountSummary) -> Text:
    """An account's state and the actions that it forbids."""
    state = summary.state
    if not state.forbids:
        return Text(state.name, "green")
    return Text.assemble((state.name, "red"), f": no {', no '.join(state.forbids)}")


def heading(name: str, exchange_id: str) -> Text:
    """An account's name, and the exchange's id if it differs."""
    title = Text(printable(name), "bold")
    return title if name == exchange_id else title.append(f" ({printable(exchange_id)})", "")


def balance_table(
    structure: Mapping[str, Any],
    policy: str,
    *,
    console: Console,
    may_drop: Sequence[str],
    codes: Sequence[str] | None = None,
    precise: bool = False,
    highlighted: Collection[tuple[str, str]] = (),
) -> Table:
    """A balance as a table; columns are left out until it fits the console.

    Args:
        structure: ccxt's balance structure.
        policy: the meaning of ``free``; empty if unknown.
        console: the table is fitted to its width.
        may_drop: the columns that may be left out, the least important first.
        codes: the currencies to show; default: all.
        precise: whether to show all digits.
        highlighted: currency code and name of the amounts to highlight.
    """
    dropped: list[str] = []
    while True:
        table = _table(structure, policy, dropped, codes, precise, highlighted)
        wide = console.options.update(width=MAX_WIDTH)
        fits = Measurement.get(console, wide, table).maximum <= console.width
        left = [name for name in may_drop if name not in dropped]
        if fits or not left:
            return table
        dropped.append(left[0])


def _table(
    structure: Mapping[str, Any],
    policy: str,
    dropped: Collection[str],
    codes: Sequence[str] | None,
    precise: bool,
    highlighted: Collection[tuple[str, str]],
) -> Table:
    debts = structure.get("debt", {})
    cells: dict[str, dict[str, Text]] = {}
    shown = list(structure["total"]) if codes is None else codes
    for code in shown:
        amounts = structure[code]
        row = {"currency": Text(printable(code))}
        for name in AMOUNTS:
            text = amount_text(amounts.get(name), precise=precise, up=name == "used")
            row[name] = Text(text, "black on yellow" if (code, name) in highlighted else "")
        owed = amount_text(debts[code], precise=precise, up=True) if code in debts else ""
        row["debt"] = Text(owed, "red")
        row["in use"] = bar(amounts.get("used"), amounts.get("total"))
        cells[code] = row
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ["currency", *AMOUNTS, *(["debt"] if debts else []), "in use"]
    names = [name for name in names if name not in dropped]
    for name in names:
        title = f"free ({policy})" if name == "free" and policy else name
        justify = "left" if name in {"currency", "in use"} else "right"
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for code in shown:
        table.add_row(*(cells[code][name] for name in names))
    return table


def print_balance(
    name: str,
    exchange_id: str,
    structure: Mapping[str, Any],
    policy: str,
    summary: AccountSummary | Exception | None,
    *,
    precise: bool,
) -> None:
    """Print one account's balance, with its state and the time of the answer."""
    from rich.console import Console  # noqa: PLC0415

    title = heading(name, exchange_id).append("  ")
    if isinstance(summary, Exception):
        title.append("state unknown", "yellow").append(f" ({printable(str(summary))})  ")
    elif summary is not None:
        title.append_text(state_text(summary)).append("  ")
    out().print(title.append(_time_text(structure), "dim"), soft_wrap=True)
    if not structure["total"]:
        out().print("the account holds no currency\n", style="dim")
        return
    table = balance_table(structure, policy, console=out(), may_drop=("in use",), precise=precise)
    # A line may be longer than the terminal is wide, so that no amount is cut.
    Console(width=MAX_WIDTH).print(table, crop=False, soft_wrap=True, highlight=False)
    out().print()


def _time_text(structure: Mapping[str, Any]) -> str:
    timestamp = structure.get("timestamp")
    if timestamp is None:
        return "no timestamp in the answer"
    moment = datetime.fromtimestamp(timestamp / 1000, UTC)
    return f"as of {moment:%Y-%m-%d %H:%M:%S} UTC"
