"""Random changes of accounts: a seeded random walk from one balance to the next."""

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


class RandomWalk:
    """Decides when and how an account changes.

    An account begins to change when it is first read or watched, so unused accounts cost nothing.
    Only accounts that are then in the normal state and have a currency change.

    Args:
        seconds: the minimum time between two changes of an account.
        seed: for the random numbers, which differ per account; ``None`` gives different ones each
            time.
        clock: seconds UTC, for the balances' ``updated_time``.
    """

    def __init__(self, seconds: float, seed: int | None, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._seed = os.urandom(8) if seed is None else seed
        self._clock = clock
        # The random numbers of each account; None for an account that does not change.
        self._generators: dict[str, random.Random | None] = {}
        self._changed_at: dict[str, float] = {}

    def next(self, name: str, balance: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next balance of an account; ``None`` if it does not change now."""
        now = time.monotonic()
        if name not in self._generators:
            changes = balance.get("state") == _NORMAL and balance.get("details")
            # Not used for secrets.
            generator = random.Random(f"{self._seed!r} {name}") if changes else None  # noqa: S311
            self._generators[name] = generator
            self._changed_at[name] = now
        generator = self._generators[name]
        if generator is None or now - self._changed_at[name] < self.seconds:
            return None
        self._changed_at[name] = now
        try:
            return next_balance(balance, generator, round(self._clock() * 1000))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None  # a test's balance that no venue would send


def next_balance(
    balance: Mapping[str, Any], generator: random.Random, time_ms: int
) -> dict[str, Any]:
    """One step: in each currency, orders fill, prices move, fees and funding are paid.

    An account whose equity falls below its maintenance margin becomes ``liquidating``. Its next
    balance is normal again, without positions and with the loss realised.
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
            margin = max(margin + room * _share(generator, 0.1), Decimal(0))
            realised = profit * (1 - margin / before) if margin < before else Decimal(0)
            profit += margin * _share(generator, 0.05) - realised
            cash += realised + cash * _share(generator, 0.01)
        maintenance = margin * _MAINTENANCE_SHARE
        surplus += (cash + profit - maintenance) * Decimal(price)
        amounts = (_rounded(cash), _rounded(profit), _rounded(margin), _rounded(maintenance))
        holdings.append(Holding(row["currency"], *amounts, price, row["voucher"]))
    state = _LIQUIDATING if surplus < 0 and not liquidated else _NORMAL
    return balance_data(holdings, state=state, updated_time=time_ms)


def _share(generator: random.Random, most: float) -> Decimal:
    return Decimal(repr(generator.uniform(-most, most)))


def _rounded(amount: Decimal) -> str:
    """Rounded, so that sums and values have at most the venues' 18 decimal places."""
    return str(amount.quantize(_PLACES))
