"""How balances look, for ``balance`` and ``watch`` alike: one table, one heading.

Figures are cut to 8 places, which is marked, and never to the width of the terminal: rather a
column is left out.
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
VIEWS: Final = ("free", "used", "total")

LEAST_FIRST: Final = ("in use", "used", "debt", "total")
"""The columns that may be left out, the least important first."""


def amount_text(figure: object, *, precise: bool, up: bool = False) -> str:
    """A figure; unless precise, cut to 8 places, which is marked.

    An amount that is there is never shown too large, and one that is used or owed (``up``) never
    too small.
    """
    if figure is None:
        return "unknown"
    exact = Decimal(str(figure))
    shown = exact if precise else exact.quantize(PLACES, ROUND_CEILING if up else ROUND_FLOOR)
    if shown == exact:
        return f"{exact:,f}"
    return f"{shown:,f}…"


def bar(used: object, total: object) -> Text:
    """The share of a total that is used; empty where it is unknown."""
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
    """An account's state and what it forbids."""
    state = summary.state
    if not state.forbids:
        return Text(state.name, "green")
    return Text.assemble((state.name, "red"), f": no {', no '.join(state.forbids)}")


def heading(name: str, exchange_id: str) -> Text:
    """An account's name, and its exchange where that is another name."""
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
    """A balance as a table that fits the console, as far as columns may be left out.

    Args:
        structure: ccxt's.
        policy: what ``free`` means; empty if that is unknown.
        console: whose width counts.
        may_drop: the columns that may be left out, the least important first.
        codes: the currencies to show; default: all.
        precise: whether to show all digits.
        highlighted: code and view of figures to highlight.
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
        figures = structure[code]
        row = {"currency": Text(printable(code))}
        for view in VIEWS:
            text = amount_text(figures.get(view), precise=precise, up=view == "used")
            row[view] = Text(text, "black on yellow" if (code, view) in highlighted else "")
        owed = amount_text(debts[code], precise=precise, up=True) if code in debts else ""
        row["debt"] = Text(owed, "red")
        row["in use"] = bar(figures.get("used"), figures.get("total"))
        cells[code] = row
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ["currency", *VIEWS, *(["debt"] if debts else []), "in use"]
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
    out().print(title.append(_moment(structure), "dim"), soft_wrap=True)
    if not structure["total"]:
        out().print("the venue says that the account holds no currency\n", style="dim")
        return
    table = balance_table(structure, policy, console=out(), may_drop=("in use",), precise=precise)
    # No figure is ever cut to the terminal's width: rather a long line.
    Console(width=MAX_WIDTH).print(table, crop=False, soft_wrap=True, highlight=False)
    out().print()


def _moment(structure: Mapping[str, Any]) -> str:
    timestamp = structure.get("timestamp")
    if timestamp is None:
        return "no timestamp in the answer"
    moment = datetime.fromtimestamp(timestamp / 1000, UTC)
    return f"as of {moment:%Y-%m-%d %H:%M:%S} UTC"
