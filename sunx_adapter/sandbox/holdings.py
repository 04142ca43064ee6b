"""Balance answers whose amounts agree with each other, from a few figures per currency.

The relations are those of the venues' printed examples: a row's equity is its cash
(``available``) plus unrealised PnL; what can still serve as margin is equity less initial margin;
an account's amounts are its rows' amounts in USDT; a rate is a margin divided by the equity.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from typing import Any, Final

EXTRA_ROW_FIELDS: Final = ("available_margin", "isolated_equity", "isolated_profit_unreal")
"""What HTX sends in each row without documenting it (seen in live answers)."""

_CREATED_MS: Final = 1757472792969
_UPDATED_MS: Final = 1758895045039

_NO_TRANSFERS_OUT: Final = frozenset({"liquidating", "3", "adl", "5", "open_limit", "6"})
"""By the pages' table of states; a state is told by name or by number."""

_EXACT: Final = Context(prec=80, rounding=ROUND_DOWN)
_PLACES: Final = Decimal("1e-18")


@dataclass(frozen=True, slots=True)
class Holding:
    """What an account has of one currency. Amounts are decimal text in units of that currency.

    Attributes:
        currency: the venue's id, ``"USDT"``.
        cash: the amount without unrealised PnL; below zero it is a debt.
        profit_unreal: unrealised PnL.
        initial_margin: margin that open positions and orders take.
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
    """The ``data`` of a balance answer, in SunX's order of keys.

    Args:
        holdings: one per currency; none gives ``details: []``.
        state: as the venue writes it, a name (``"open_limit"``) or a number (``"6"``).
        created_time: ms UTC.
        updated_time: ms UTC.
    """
    with localcontext(_EXACT):
        rows = [_Row.of(holding) for holding in holdings]
        equity = sum((row.equity * row.price for row in rows), Decimal(0))
        initial = sum((row.initial_margin * row.price for row in rows), Decimal(0))
        maintenance = sum((row.maintenance_margin * row.price for row in rows), Decimal(0))
        times = {"created_time": created_time, "updated_time": updated_time}
        return {
            "state": state,
            "equity": _text(equity),
            "details": [
                row.details(times, transfers_out=state not in _NO_TRANSFERS_OUT) for row in rows
            ],
            "initial_margin": _text(initial),
            "maintenance_margin": _text(maintenance),
            "maintenance_margin_rate": _rate(maintenance, equity),
            "profit_unreal": _text(
                sum((row.profit_unreal * row.price for row in rows), Decimal(0))
            ),
            "available_margin": _text(equity - initial),
            "voucher_value": "0",
            **times,
        }


@dataclass(frozen=True, slots=True)
class _Row:
    holding: Holding
    cash: Decimal
    profit_unreal: Decimal
    initial_margin: Decimal
    maintenance_margin: Decimal
    price: Decimal

    @classmethod
    def of(cls, holding: Holding) -> "_Row":
        return cls(
            holding,
            Decimal(holding.cash),
            Decimal(holding.profit_unreal),
            Decimal(holding.initial_margin),
            Decimal(holding.maintenance_margin),
            Decimal(holding.price),
        )

    @property
    def equity(self) -> Decimal:
        return self.cash + self.profit_unreal

    def details(self, times: dict[str, int], *, transfers_out: bool) -> dict[str, Any]:
        free = self.equity - self.initial_margin
        movable = max(Decimal(0), min(self.cash, free)) if transfers_out else Decimal(0)
        return {
            "currency": self.holding.currency,
            "equity": _text(self.equity),
            "available": _text(self.cash),
            "profit_unreal": _text(self.profit_unreal),
            "initial_margin": _text(self.initial_margin),
            "maintenance_margin": _text(self.maintenance_margin),
            "maintenance_margin_rate": _rate(self.maintenance_margin, self.equity),
            "initial_margin_rate": _rate(self.initial_margin, self.equity),
            "available_margin": _text(free),
            "voucher": self.holding.voucher,
            "voucher_value": self.holding.voucher,
            "withdraw_available": _text(movable),
            **times,
            "isolated_equity": "0",
            "isolated_profit_unreal": "0",
        }


def _rate(margin: Decimal, equity: Decimal) -> str:
    return _text(margin / equity) if equity else "0"


def _text(value: Decimal) -> str:
    """Plain decimal text of at most 18 places, as the venues write amounts."""
    cut = value.quantize(_PLACES)
    return format(cut.normalize(), "f") if cut else "0"
