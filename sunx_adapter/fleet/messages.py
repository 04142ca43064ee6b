"""The messages between an application and its workers. They never contain a key.

The application calls a worker again as soon as the worker's report has arrived. Each call repeats
the receipt of that report, so the calls form a chain. If the chain breaks (a call failed, the
worker hung, or another process has its address), a new chain starts, without any account.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ccxt.base.errors import ExchangeError

from sunx_adapter.exchange.budget import VENUE_LIMIT

LEASE_SECONDS: Final = 1.5
"""How long a worker may sign requests after a report that the application received."""

WINDOW_SECONDS: Final = VENUE_LIMIT.seconds
"""The venue no longer counts a request that was signed so long ago, even if it arrived late."""


class Work(NamedTuple):
    """What to do with an account.

    Attributes:
        ready_at: when the account may be read, on the clock of ``Assignment.sent_at``.
        reading: the number of the newest reading (a call of ``fetch_balances()``) that needs the
            account; 0 for none.
        every: the seconds between two reads while the account is watched; 0 for the push channel;
            ``None`` if it is not watched.
    """

    ready_at: float
    reading: int
    every: float | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """The accounts that one worker owns from now on.

    Attributes:
        file: the keys file, unless the worker's environment names another one.
        number: the type of the balances' figures.
        receipt: the receipt of the worker's last report; empty in the first assignment, which has
            no accounts.
        sent_at: when the assignment was sent, on the application's clock.
        owned: the accounts; ``None`` if nothing has changed.
    """

    file: str
    number: type
    receipt: str = ""
    sent_at: float = 0.0
    owned: Mapping[str, Work] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to an assignment.

    Attributes:
        receipt: the next assignment must repeat it.
        balances: the account's name, the number of the reading (0 if watched), and the newest
            balance or exception, pickled.
        pending: for accounts that the worker just released, the seconds until their last read
            leaves the venue's window.
        is_idle: whether the worker has nothing to do until its accounts change.
    """

    receipt: str
    balances: list[tuple[str, int, bytes]] = field(default_factory=list)
    pending: Mapping[str, float] = field(default_factory=dict)
    is_idle: bool = True


def packed(value: object) -> bytes:
    """A pickled balance or exception; if it cannot be pickled, an ``ExchangeError`` instead."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - classes of other packages
        return pickle.dumps(_not_transferable(value, error))


def unpacked(data: bytes) -> Any:
    """The balance or exception; an ``ExchangeError`` if it cannot be unpickled."""
    try:
        return pickle.loads(data)  # noqa: S301 - from our own worker
    except Exception as error:  # noqa: BLE001 - classes of other packages
        return _not_transferable(None, error)


def _not_transferable(value: object, error: Exception) -> ExchangeError:
    what = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else "a balance"
    return ExchangeError(f"{what} (cannot be sent between processes: {type(error).__name__})")
