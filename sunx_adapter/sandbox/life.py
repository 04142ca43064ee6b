"""Accounts that change by themselves: a seeded random walk from one balance to the next."""

import os
import random
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from sunx_adapter.sandbox.holdings import PRICES, Holding, balance_data

_NORMAL: Final = "normal"
_LIQUIDATING: Final = "liquidating"
_MAINTENANCE_SHARE: Final = Decimal("0.2")
_PLACES: Final = Decimal("1e-12")


class Life:
    """Decides when an account changes, and how.

    An account begins to change when it is first read or watched, so accounts that nobody looks at
    cost nothing. Only an account that is in the normal state then, and has something, changes.

    Args:
        seconds: the least time between two changes of an account.
        seed: of the walks; each account has one of its own. ``None`` walks differently each time.
        clock: seconds UTC, for the balances' ``updated_time``.
    """

    def __init__(self, seconds: float, seed: int | None, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._seed = os.urandom(8) if seed is None else seed
        self._clock = clock
        self._walks: dict[str, random.Random | None] = {}
        self._changed: dict[str, float] = {}

    def next(self, name: str, balance: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next balance of an account; ``None`` if it stays as it is."""
        now = time.monotonic()
        if name not in self._walks:
            walks = balance.get("state") == _NORMAL and balance.get("details")
            # No secret is made of it.
            self._walks[name] = random.Random(f"{self._seed!r} {name}") if walks else None  # noqa: S311
            self._changed[name] = now
        walk = self._walks[name]
        if walk is None or now - self._changed[name] < self.seconds:
            return None
        self._changed[name] = now
        try:
            return next_balance(balance, walk, round(self._clock() * 1000))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None  # a balance that no venue would send has no next one


def next_balance(
    balance: Mapping[str, Any], chance: random.Random, milliseconds: int
) -> dict[str, Any]:
    """One step: in each currency orders fill, prices move, and fees, funding and money come.

    An account that cannot keep its maintenance margin is ``liquidating``; its next balance is
    without positions, at a loss, and normal again.
    """
    liquidated = balance["state"] == _LIQUIDATING
    holdings = []
    surplus = Decimal(0)
    for row in balance["details"]:
        price = PRICES.get(row["currency"], "1")
        cash, profit = Decimal(row["available"]), Decimal(row["profit_unreal"])
        margin = Decimal(row["initial_margin"])
        if liquidated:
            cash, profit, margin = max(cash + profit, Decimal(0)), Decimal(0), Decimal(0)
        else:
            before = margin
            room = max(cash + profit, margin)
            margin = max(margin + room * _share(chance, 0.1), Decimal(0))
            realised = profit * (1 - margin / before) if margin < before else Decimal(0)
            profit += margin * _share(chance, 0.05) - realised
            cash += realised + cash * _share(chance, 0.01)
        maintenance = margin * _MAINTENANCE_SHARE
        surplus += (cash + profit - maintenance) * Decimal(price)
        amounts = (_rounded(cash), _rounded(profit), _rounded(margin), _rounded(maintenance))
        holdings.append(Holding(row["currency"], *amounts, price, row["voucher"]))
    state = _LIQUIDATING if surplus < 0 and not liquidated else _NORMAL
    return balance_data(holdings, state=state, updated_time=milliseconds)


def _share(chance: random.Random, most: float) -> Decimal:
    return Decimal(repr(chance.uniform(-most, most)))


def _rounded(amount: Decimal) -> str:
    """So that sums, and values at a price, have no more than the venues' 18 places."""
    return str(amount.quantize(_PLACES))
