"""The messages between an application and its workers. They never hold a key."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ccxt.base.errors import ExchangeError

from sunx_adapter.venue import READ_LIMIT

LEASE_SECONDS: Final = 1.5
"""How long a worker may sign requests after a report that the application received."""

WINDOW_SECONDS: Final = READ_LIMIT.seconds + 0.2
"""After this time the venue no longer counts a request; it may arrive a little after signing."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The accounts that one worker owns, and what to do with them.

    Attributes:
        generation: a newer assignment has a higher one.
        worker: the id of the worker; another process at its address ignores the assignment.
        file: the keys file, unless the worker's environment names another.
        number: the type of the balances' figures.
        owned: for each name the seconds until the account may be read.
        watched: for each name the seconds between two reads; 0 for the push channel.
        reads: the names to read once, by the number of the reading.
    """

    generation: int
    worker: str = ""
    file: str = ""
    number: type = float
    owned: Mapping[str, float] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)
    reads: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """The confirmation of an assignment.

    Attributes:
        worker: the worker's id.
        pending: for accounts that the worker no longer owns, the seconds until their last read
            leaves the venue's window.
    """

    worker: str
    pending: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a report.

    Attributes:
        worker: the worker's id, from its last report; without it the worker starts anew.
        generation: the newest assignment; the lease is renewed only if the worker has it.
        received: the number of the last report that the application received.
    """

    worker: str = ""
    generation: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The new balances of a worker.

    Attributes:
        worker: the worker's id, which no other process has.
        number: counts the worker's reports.
        balances: the newest of each account: the number of the reading (0 for watched accounts),
            the name, and the pickled balance or exception.
    """

    worker: str
    number: int
    balances: list[tuple[int, str, bytes]]


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
    return ExchangeError(f"{what} (cannot pass between processes: {type(error).__name__})")
