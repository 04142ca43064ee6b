"""Accounts that live: prices move, orders fill, funding is paid, money comes in, positions end.

A seeded random walk over holdings; the same seed gives the same life. Balances are made of the
holdings by :func:`~sunx_adapter.sandbox.holdings.balance_data`, so that their amounts always agree.
"""

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from sunx_adapter.sandbox.holdings import Holding

PRICES: Final = {"BTC": "64000", "ETH": "2600"}
"""What one unit counts as collateral, in USDT; everything else counts as one."""

_FEE: Final = Decimal("0.0005")
_MARGIN_SHARE: Final = Decimal("0.2")
_PLACES: Final = Decimal("1e-12")
_NORMAL: Final = "normal"
_LIQUIDATING: Final = "liquidating"


@dataclass(frozen=True, slots=True)
class Life:
    """What an account is made of, at one moment.

    Attributes:
        holdings: one per currency.
        state: as the venue writes it.
    """

    holdings: tuple[Holding, ...]
    state: str = _NORMAL

    @classmethod
    def of(cls, balance: Mapping[str, Any]) -> "Life":
        """What a balance is made of."""
        rows = balance.get("details", [])
        holdings = (
            Holding(
                row["currency"],
                cash=row["available"],
                profit_unreal=row["profit_unreal"],
                initial_margin=row["initial_margin"],
                maintenance_margin=row["maintenance_margin"],
                price=PRICES.get(row["currency"], "1"),
                voucher=row["voucher"],
            )
            for row in rows
        )
        return cls(tuple(holdings), str(balance.get("state", _NORMAL)))


def lives(balance: Mapping[str, Any]) -> bool:
    """Whether an account of that balance can have a life: it is normal, and has something."""
    return balance.get("state") == _NORMAL and bool(balance.get("details"))


def next_moment(life: Life, chance: random.Random) -> Life:
    """The next moment of an account's life."""
    if life.state == _LIQUIDATING:
        return _liquidated(life)
    index = chance.randrange(len(life.holdings))
    event = chance.choices((_tick, _fill, _funding, _transfer_in), (70, 15, 10, 5))[0]
    holdings = list(life.holdings)
    holdings[index] = event(holdings[index], chance)
    moved = Life(tuple(holdings))
    return replace(moved, state=_LIQUIDATING) if _is_under_water(moved) else moved


def _is_under_water(life: Life) -> bool:
    left = sum(
        (
            (Decimal(h.cash) + Decimal(h.profit_unreal) - Decimal(h.maintenance_margin))
            * Decimal(h.price)
            for h in life.holdings
        ),
        Decimal(0),
    )
    return left < 0


def _liquidated(life: Life) -> Life:
    """Positions end at a loss, and what is left is the account's own again."""
    ended = (
        replace(
            holding,
            cash=_text(max(Decimal(holding.cash) + Decimal(holding.profit_unreal), Decimal(0))),
            profit_unreal="0",
            initial_margin="0",
            maintenance_margin="0",
        )
        for holding in life.holdings
    )
    return Life(tuple(ended))


def _tick(holding: Holding, chance: random.Random) -> Holding:
    """The price moves: positions gain or lose with it."""
    margin = Decimal(holding.initial_margin)
    move = margin * _share(chance, 0.05)
    return replace(holding, profit_unreal=_text(Decimal(holding.profit_unreal) + move))


def _fill(holding: Holding, chance: random.Random) -> Holding:
    """An order fills: a position grows or shrinks, some profit becomes cash, a fee is paid."""
    cash, profit = Decimal(holding.cash), Decimal(holding.profit_unreal)
    margin = Decimal(holding.initial_margin)
    free = max(cash + profit - margin, Decimal(0))
    change = free * abs(_share(chance, 0.1)) if chance.random() < 0.5 else -margin / 2  # noqa: PLR2004
    realised = profit / 2 if change < 0 else Decimal(0)
    margin = max(margin + change, Decimal(0))
    return replace(
        holding,
        cash=_text(cash + realised - abs(change) * _FEE),
        profit_unreal=_text(profit - realised),
        initial_margin=_text(margin),
        maintenance_margin=_text(margin * _MARGIN_SHARE),
    )


def _funding(holding: Holding, chance: random.Random) -> Holding:
    """Funding is paid or received."""
    paid = Decimal(holding.initial_margin) * _share(chance, 0.001)
    return replace(holding, cash=_text(Decimal(holding.cash) - paid))


def _transfer_in(holding: Holding, chance: random.Random) -> Holding:
    """Money comes in."""
    amount = max(abs(Decimal(holding.cash)), Decimal(1)) * abs(_share(chance, 0.02))
    return replace(holding, cash=_text(Decimal(holding.cash) + amount))


def _share(chance: random.Random, most: float) -> Decimal:
    return Decimal(repr(chance.uniform(-most, most)))


def _text(amount: Decimal) -> str:
    return format(amount.quantize(_PLACES), "f")


class LifeThread:
    """Lets accounts live until it is stopped.

    Args:
        names: whose life it is.
        balance: gives an account's balance as it is now.
        update: takes an account's next moment.
        seconds: between two moments of all accounts.
        seed: of the walk; ``None`` walks differently each time.
    """

    def __init__(
        self,
        names: Iterable[str],
        balance: Callable[[str], Mapping[str, Any]],
        update: Callable[[str, Life], None],
        *,
        seconds: float,
        seed: int | None = None,
    ) -> None:
        self._names = tuple(names)
        self._balance = balance
        self._update = update
        self._seconds = seconds
        self._chance = random.Random(seed)  # noqa: S311 - no secret is made of it
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="sunx-adapter-sandbox-life", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it; returns when it has ended."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._seconds):
            for name in self._names:
                life = Life.of(self._balance(name))
                if life.holdings:
                    self._update(name, next_moment(life, self._chance))
