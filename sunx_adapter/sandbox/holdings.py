"""Computes consistent balance answers from a few amounts per currency.

The amounts relate as in the examples on the venues' pages: a row's equity is its cash
(``available``) plus unrealised PnL; the available margin is equity minus initial margin; an
account's amounts are the sums of its rows' amounts in USDT; a rate is a margin divided by equity.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from typing import Any, Final

EXTRA_ROW_FIELDS: Final = ("available_margin", "isolated_equity", "isolated_profit_unreal")
"""Undocumented fields that HTX sends in each row (seen in live answers)."""

PRICES: Final = {"BTC": "64000", "ETH": "2600"}
"""The value of one unit as collateral, in USDT, for accounts that the sandbox makes or changes."""

_CREATED_MS: Final = 1757472792969
_UPDATED_MS: Final = 1758895045039

_NO_TRANSFERS_OUT: Final = frozenset({"liquidating", "3", "adl", "5", "open_limit", "6"})
"""From the table of states on the venues' pages; a state is sent as a name or as a number."""

_EXACT: Final = Context(prec=80, rounding=ROUND_DOWN)
_PLACES: Final = Decimal("1e-18")


@dataclass(frozen=True, slots=True)
class Holding:
    """An account's holding of one currency. Amounts are decimal text in units of that currency.

    Attributes:
        currency: the venue's id, ``"USDT"``.
        cash: the amount without unrealised PnL; a negative amount is a debt.
        profit_unreal: unrealised PnL.
        initial_margin: margin used by open positions and orders.
        maintenance_margin: equity below which the account is liquidated.
        price: value of one unit as collateral, in USDT.
        voucher: amount of vouchers; the venues also send ``""``.
    """

    currency: str
    cash: str
    profit_unreal: str = "0"
    initial_margin: str = "0"
    maintenance_margin: str = "0"
    price: str = "1"
    voucher: str = "0"


def balance_data(
    holdings: Iterable[Holding] = (),
    *,
    state: str = "normal",
    created_time: int = _CREATED_MS,
    updated_time: int = _UPDATED_MS,
) -> dict[str, Any]:
    """The ``data`` of a balance answer, with its keys in SunX's order.

    Args:
        holdings: one per currency; without any, ``details`` is ``[]``.
        state: the venue's name (``"open_limit"``) or number (``"6"``) of the account state.
        created_time: ms UTC.
        updated_time: ms UTC.
    """
    times = {"created_time": created_time, "updated_time": updated_time}
    equity = profit = initial = maintenance = Decimal(0)
    rows = []
    with localcontext(_EXACT):
        for holding in holdings:
            price, cash = Decimal(holding.price), Decimal(holding.cash)
            row_profit = Decimal(holding.profit_unreal)
            row_initial = Decimal(holding.initial_margin)
            row_maintenance = Decimal(holding.maintenance_margin)
            row_equity = cash + row_profit
            free = row_equity - row_initial
            movable = Decimal(0) if state in _NO_TRANSFERS_OUT else max(Decimal(0), min(cash, free))
            rows.append(
                {
                    "currency": holding.currency,
                    "equity": _text(row_equity),
                    "available": _text(cash),
                    "profit_unreal": _text(row_profit),
                    "initial_margin": _text(row_initial),
                    "maintenance_margin": _text(row_maintenance),
                    "maintenance_margin_rate": _rate(row_maintenance, row_equity),
                    "initial_margin_rate": _rate(row_initial, row_equity),
                    "available_margin": _text(free),
                    "voucher": holding.voucher,
                    "voucher_value": holding.voucher,
                    "withdraw_available": _text(movable),
                    **times,
                    "isolated_equity": "0",
                    "isolated_profit_unreal": "0",
                }
            )
            equity += row_equity * price
            profit += row_profit * price
            initial += row_initial * price
            maintenance += row_maintenance * price
        return {
            "state": state,
            "equity": _text(equity),
            "details": rows,
            "initial_margin": _text(initial),
            "maintenance_margin": _text(maintenance),
            "maintenance_margin_rate": _rate(maintenance, equity),
            "profit_unreal": _text(profit),
            "available_margin": _text(equity - initial),
            "voucher_value": "0",
            **times,
        }


def _rate(margin: Decimal, equity: Decimal) -> str:
    return _text(margin / equity) if equity else "0"


def _text(value: Decimal) -> str:
    """Plain decimal text with at most 18 decimal places, as the venues send amounts."""
    cut = value.quantize(_PLACES)
    return format(cut.normalize(), "f") if cut else "0"
