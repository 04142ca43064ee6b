"""What passes between an application and its workers. No key is ever in it."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ccxt.base.errors import ExchangeError

from sunx_adapter.venue import READ_LIMIT

LEASE_SECONDS: Final = 1.5
"""So long a worker may sign requests after it reported, if the application has the report."""

WINDOW_SECONDS: Final = READ_LIMIT.seconds + 0.2
"""After so long a signed request is out of the venue's window; requests take a moment to arrive."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one worker owns, and is to do.

    Attributes:
        generation: a newer assignment has a higher one.
        worker: the number of the worker that is meant; another process at its address ignores it.
        file: the keys file, unless the worker's environment names another.
        number: the type of the balances' figures.
        owned: for each name the seconds until it may be read first.
        watched: for each name the seconds between two reads; 0 for the push channel.
        reads: the names to be read once, by the number of the request.
    """

    generation: int
    file: str
    number: type
    owned: Mapping[str, float]
    watched: Mapping[str, float] = field(default_factory=dict)
    reads: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """The application asks for what is new.

    Attributes:
        worker: the worker's number of its own, from its last report.
        generation: of the assignment that the worker should have; another one renews no lease.
        stamp: of the last report that the application has.
        taken: the news that the application has.
    """

    worker: str = ""
    generation: int = 0
    stamp: float = 0.0
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has to say.

    Attributes:
        worker: a number of its own: another process at the same address has another.
        generation: of its assignment; 0 if it has none.
        stamp: the worker's own clock.
        last: the number of the last news in the report.
        news: of each account that has news the newest: the request's number (0 if it is watched),
            its name, and the balance or exception, pickled.
    """

    worker: str
    generation: int
    stamp: float
    last: int
    news: list[tuple[int, str, bytes]]


@dataclass(frozen=True, slots=True)
class Released:
    """A worker has a new assignment.

    Attributes:
        worker: a number of its own.
        busy: of accounts that it let go lately, the seconds until their reads are out of the
            venue's window.
    """

    worker: str
    busy: Mapping[str, float]


def packed(value: object) -> bytes:
    """A balance or exception, pickled; one that cannot be becomes an ExchangeError that says so."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - classes of others
        return pickle.dumps(_unusual(value, error))


def unpacked(data: bytes) -> Any:
    """The balance or exception."""
    try:
        return pickle.loads(data)  # noqa: S301 - from a worker of our own
    except Exception as error:  # noqa: BLE001 - classes of others
        return _unusual(None, error)


def _unusual(value: object, error: Exception) -> ExchangeError:
    what = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else "a balance"
    return ExchangeError(f"{what} (cannot pass between processes: {type(error).__name__})")
