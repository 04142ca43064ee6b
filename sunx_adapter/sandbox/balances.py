"""Balance answers: computed from a few amounts per currency, and changed by a random walk.

As in the examples on the venues' pages: a row's equity is its cash (``available``) plus unrealised
PnL; the available margin is equity minus initial margin; an account's amounts are the sums of its
rows' amounts in USDT; a rate is a margin divided by equity.
"""

import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from typing import Any, Final

EXTRA_ROW_FIELDS: Final = ("available_margin", "isolated_equity", "isolated_profit_unreal")
"""Undocumented fields that HTX sends in each row (seen in live answers)."""

PRICES: Final = {"BTC": "64000", "ETH": "2600"}
"""The value of one unit as collateral, in USDT, for accounts that the sandbox makes or changes."""

_CREATED_MS: Final = 1757472792969
_UPDATED_MS: Final = 1758895045039

_NORMAL: Final = "normal"
_LIQUIDATING: Final = "liquidating"
_NO_TRANSFERS_OUT: Final = frozenset({_LIQUIDATING, "3", "adl", "5", "open_limit", "6"})
"""From the table of states on the venues' pages; a state is sent as a name or as a number."""

_EXACT: Final = Context(prec=80, rounding=ROUND_DOWN)
_PLACES: Final = Decimal("1e-18")
_WALK_PLACES: Final = Decimal("1e-12")
"""Sums and values of amounts with so many places have at most the venues' 18."""
_MAINTENANCE_SHARE: Final = Decimal("0.2")
_ZERO: Final = Decimal(0)


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
    state: str = _NORMAL,
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
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    rows = []
    with localcontext(_EXACT):
        for holding in holdings:
            cash, profit, initial, maintenance, price = map(Decimal, astuple(holding)[1:6])
            equity = cash + profit
            free = equity - initial
            movable = _ZERO if state in _NO_TRANSFERS_OUT else max(_ZERO, min(cash, free))
            amounts = {
                "equity": equity,
                "available": cash,
                "profit_unreal": profit,
                "initial_margin": initial,
                "maintenance_margin": maintenance,
                "maintenance_margin_rate": _rate(maintenance, equity),
                "initial_margin_rate": _rate(initial, equity),
                "available_margin": free,
            }
            for name, amount in amounts.items():
                sums[name] += amount * price
            row = {
                "currency": holding.currency,
                **{name: _text(amount) for name, amount in amounts.items()},
                "voucher": holding.voucher,
                "voucher_value": holding.voucher,
                "withdraw_available": _text(movable),
                **times,
                "isolated_equity": "0",
                "isolated_profit_unreal": "0",
            }
            rows.append(row)
        return {
            "state": state,
            "equity": _text(sums["equity"]),
            "details": rows,
            "initial_margin": _text(sums["initial_margin"]),
            "maintenance_margin": _text(sums["maintenance_margin"]),
            "maintenance_margin_rate": _text(_rate(sums["maintenance_margin"], sums["equity"])),
            "profit_unreal": _text(sums["profit_unreal"]),
            "available_margin": _text(sums["available_margin"]),
            "voucher_value": "0",
            **times,
        }


def _rate(margin: Decimal, equity: Decimal) -> Decimal:
    return margin / equity if equity else _ZERO


def _text(value: Decimal) -> str:
    """Plain decimal text with at most 18 decimal places, as the venues send amounts."""
    cut = value.quantize(_PLACES)
    return format(cut.normalize(), "f") if cut else "0"


def with_rows(balance: Mapping[str, Any], change: Callable[[Any], object]) -> Mapping[str, Any]:
    """A balance with changed rows. What is not a row stays: a test may set any balance."""
    if not isinstance(rows := balance.get("details"), list):
        return balance
    return {**balance, "details": [change(row) if isinstance(row, dict) else row for row in rows]}


class RandomWalk:
    """Decides when and how an account changes: at most once in ``seconds`` seconds.

    An account begins when it is first read or watched, so unused accounts cost nothing. Only
    accounts that are then in the normal state and have a currency change. ``clock``: seconds UTC.
    """

    def __init__(self, seconds: float, seed: int | None, clock: Callable[[], float]) -> None:
        self.seconds, self._clock = seconds, clock
        self._seed = os.urandom(8) if seed is None else seed
        # Each account's random numbers, and the earliest time of its next change, if it changes.
        self._accounts: dict[str, tuple[random.Random, float]] = {}

    def next(self, name: str, balance: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next balance of an account; ``None`` if it does not change now."""
        now = time.monotonic()
        if name not in self._accounts:
            changes = balance.get("state") == _NORMAL and balance.get("details")
            numbers = random.Random(f"{self._seed!r} {name}")  # noqa: S311 - makes no secrets
            self._accounts[name] = numbers, now + self.seconds if changes else float("inf")
        numbers, due = self._accounts[name]
        if now < due:
            return None
        self._accounts[name] = numbers, now + self.seconds
        try:
            return next_balance(balance, numbers, round(self._clock() * 1000))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None  # a test's balance that no venue would send


def next_balance(balance: Mapping[str, Any], numbers: random.Random, now: int) -> dict[str, Any]:
    """One step: in each currency, orders fill, prices move, fees and funding are paid.

    An account whose equity falls below its maintenance margin becomes ``liquidating``. Its next
    balance is normal again, without positions and with the loss realised.
    """

    def share(most: float) -> Decimal:
        return Decimal(repr(numbers.uniform(-most, most)))

    liquidated = balance["state"] == _LIQUIDATING
    holdings, surplus = [], _ZERO
    for row in balance["details"]:
        price = PRICES.get(row["currency"], "1")
        cash, profit = Decimal(row["available"]), Decimal(row["profit_unreal"])
        before = margin = Decimal(row["initial_margin"])
        if liquidated:
            cash, profit, margin = max(cash + profit, _ZERO), _ZERO, _ZERO
        else:
            margin = max(margin + max(cash + profit, margin) * share(0.1), _ZERO)
            realised = profit * (1 - margin / before) if margin < before else _ZERO
            profit += margin * share(0.05) - realised
            cash += realised + cash * share(0.01)
        maintenance = margin * _MAINTENANCE_SHARE
        surplus += (cash + profit - maintenance) * Decimal(price)
        rounded = [str(a.quantize(_WALK_PLACES)) for a in (cash, profit, margin, maintenance)]
        holding = Holding(row["currency"], *rounded)
        holdings.append(replace(holding, price=price, voucher=row["voucher"]))
    state = _LIQUIDATING if surplus < 0 and not liquidated else _NORMAL
    return balance_data(holdings, state=state, updated_time=now)
