"""How figures and states are shown to people."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sunx_adapter.protocol.account import AccountSummary

BAR_WIDTH: Final = 12
PLACES: Final = Decimal("0.00000001")


def amount_text(figure: object, *, precise: bool, up: bool = False) -> str:
    """A figure; unless precise, cut to 8 places, which is marked.

    What is there is never shown too large, and what is used or owed (``up``) never too small.
    """
    if figure is None:
        return "unknown"
    exact = Decimal(str(figure))
    shown = exact if precise else exact.quantize(PLACES, ROUND_CEILING if up else ROUND_FLOOR)
    if shown == exact:
        return f"{exact:,f}"
    return f"{shown:,f}…"


def bar(used: object, total: object) -> str:
    """How much of a total is used, as markup; empty where that cannot be told."""
    if used is None or total is None:
        return ""
    taken, whole = Decimal(str(used)), Decimal(str(total))
    if whole <= 0:
        return "[red]all[/]" if taken > 0 else ""
    share = taken / whole
    filled = round(min(max(share, Decimal(0)), Decimal(1)) * BAR_WIDTH)
    colour = "green" if share < Decimal("0.5") else "yellow" if share < Decimal("0.8") else "red"
    return f"[{colour}]{'█' * filled}[/][dim]{'░' * (BAR_WIDTH - filled)}[/] {share:.0%}"


def state_text(summary: "AccountSummary") -> str:
    """An account's state and what it forbids, as markup."""
    state = summary.state
    if not state.forbids:
        return f"[green]{state.name}[/]"
    return f"[red]{state.name}[/]: no {', no '.join(state.forbids)}"
