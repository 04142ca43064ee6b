"""The application's side: reads and watches the accounts of a keys file on the workers."""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self

import dask
from distributed import Client, Security

from sunx_adapter.fleet.accounts import users
from sunx_adapter.fleet.membership import Membership
from sunx_adapter.fleet.messages import Assignment
from sunx_adapter.keys import KEYS_FILE_VARIABLE, accounts_from_file

_CLUSTER_SETTINGS: Final = {
    # By default each call needs a new connection, and workers profile their threads.
    "distributed.scheduler.reuse-broadcast-comm": True,
    "distributed.worker.profile.enabled": False,
    # By default a worker that is killed twice within 15 s is never started again.
    "distributed.deploy.lost-worker-timeout": "1h",
}


class FleetError(Exception):
    """The fleet cannot continue; the message says why."""


class _Reading:
    """A call of ``fetch_balances()`` or ``watch_balances()``.

    Attributes:
        number: later calls have higher numbers.
        names: the accounts; ``fetch_balances()`` removes those that were read.
        every: see ``watch_balances()``; ``None`` for ``fetch_balances()``.
        pending: the newest balances that the caller has not received yet, longest waiting first.
        changed: set when ``pending`` or the fleet changes.
    """

    def __init__(self, number: int, names: Iterable[str], every: float | None) -> None:
        self.number = number
        self.names = dict.fromkeys(names)
        self.every = every
        self.pending: OrderedDict[str, Any] = OrderedDict()
        self.changed = asyncio.Event()

    def add(self, name: str, value: Any) -> None:
        """Add the newest balance of an account, in place of the one before."""
        self.pending[name] = value
        self.changed.set()


class Fleet:
    """Reads and watches any number of accounts on the workers of a cluster.

    ::

        async with Fleet("accounts.toml") as fleet:
            async for name, balance in fleet.fetch_balances():
                ...

    Without a scheduler or client it starts a cluster on this machine, over TLS with temporary
    certificates, and stops it at the end. This starts processes that import the program, so call it
    behind ``if __name__ == "__main__":``.

    Args:
        accounts: the keys file, see :mod:`sunx_adapter.keys`. A worker reads keys from its own
            environment and its own file: the file that ``SUNX_ADAPTER_KEYS`` names there, else the
            same path. So this file needs no keys, only each account's ``uid``.
        scheduler: the address of a running scheduler, ``"tls://host:8786"``.
        security: the certificates for this scheduler.
        client: a connected client, whose scheduler is used.
        workers: how many processes to start on this machine; default: one per core.
        number: the type of the balances' figures: ``float``, ``str`` or ``decimal.Decimal``.
        patience: seconds to wait while no worker answers, at the start and later.

    Raises:
        KeysError: the keys file cannot be used.
        FleetError: no worker answered within ``patience``; raised by ``async with``.
    """

    def __init__(
        self,
        accounts: str | PathLike[str],
        *,
        scheduler: str | None = None,
        security: Security | None = None,
        client: Client | None = None,
        workers: int | None = None,
        number: type = float,
        patience: float = 60.0,
    ) -> None:
        file = Path(accounts).expanduser().absolute()
        self._file = str(file)
        self._scheduler, self._security, self._client = scheduler, security, client
        self._processes, self._patience = workers, patience
        self._expected = 1
        by_user = users(accounts_from_file(file))
        self._names = [name for names in by_user.values() for name in names]
        self._membership = Membership(
            by_user,
            Assignment(self._file, number),
            connect=self._connect,
            wanted=self._wanted,
            take=self._take,
        )
        self._open = contextlib.AsyncExitStack()
        self._closed = False
        self._readings: list[_Reading] = []
        self._numbers = itertools.count(1)
        self._newest: dict[str, Any] = {}
        self._published: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The names of the accounts."""
        return list(self._names)

    @property
    def workers(self) -> list[str]:
        """The addresses of the workers that answer."""
        return self._membership.addresses

    # -- open and close ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._patience):
                await self._membership.join(lambda: self._expected)
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise self._no_answer() from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all readings, and stop the cluster if it was started here."""
        self._closed = True
        for reading in self._readings:
            reading.changed.set()
        await self._membership.leave()
        await self._open.aclose()

    def _no_answer(self) -> FleetError:
        trouble = self._membership.trouble
        return FleetError(f"no worker answered within {self._patience:g} s: {trouble}")

    async def _connect(self) -> Client:
        where: dict[str, Any] = {"address": self._scheduler, "security": self._security}
        if self._client is not None:
            # A new connection to the same scheduler: the client may belong to another thread.
            if self._client.scheduler is None:
                raise ConnectionError("the client is not connected")
            where = {"address": self._client.scheduler.address, "security": self._client.security}
        elif self._scheduler is None:
            self._open.enter_context(dask.config.set(_CLUSTER_SETTINGS))
            where = {
                "n_workers": self._processes,
                "threads_per_worker": 1,
                "silence_logs": logging.CRITICAL,
                "security": True,  # temporary certificates
                "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                "env": {KEYS_FILE_VARIABLE: self._file},
            }
        client = Client(asynchronous=True, set_as_default=False, **where)
        try:
            await client
        except BaseException:
            with contextlib.suppress(Exception):  # it never connected
                await client.close()
            raise
        self._open.push_async_callback(client.close)
        if client.cluster is not None:
            self._expected = len(client.cluster.workers)
        return client

    # -- readings ---------------------------------------------------------------------------

    def fetch_balances(
        self, names: Iterable[str] | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any] | Exception], None]:
        """Read each account once; balances come in the order in which they arrive.

        Args:
            names: of the accounts; default: all.

        Yields:
            The name and the balance, as the exchange's ``fetch_balance()`` returns it, or the
            exception that it raises: exactly once for each account, even if workers fail.

        Raises:
            KeyError: an unknown account.
            FleetError: the fleet was closed, or no worker has answered for ``patience``.
        """
        return self._balances(names, None)

    def watch_balances(
        self, names: Iterable[str] | None = None, every: float | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any] | Exception], None]:
        """Watch accounts: yields their newest balances as they change, until the fleet is closed.

        A slow caller gets only the newest balance of each account.

        Args:
            names: of the accounts; default: all.
            every: seconds between two reads of an account; default: the push channel, or every
                3 s if the exchange has none. Polled balances are yielded even if unchanged.

        Yields:
            The name and the balance, or an exception, after which watching goes on. A balance is
            never older than the previous one.

        Raises:
            KeyError: an unknown account.
            ValueError: ``every`` is negative or infinite.
            FleetError: the fleet was closed, or no worker has answered for ``patience``.
        """
        if not 0 <= (every or 0.0) < math.inf:
            raise ValueError(f"every must be a number of seconds, not {every}")
        return self._balances(names, every or 0.0)

    async def _balances(
        self, names: Iterable[str] | None, every: float | None
    ) -> AsyncGenerator[tuple[str, Any], None]:
        reading = _Reading(next(self._numbers), self._names if names is None else names, every)
        if unknown := reading.names.keys() - set(self._names):
            raise KeyError(f"no account {min(unknown)!r} in {self._file}")
        if every is not None:
            reading.pending.update({n: self._newest[n] for n in reading.names if n in self._newest})
        self._readings.append(reading)
        self._membership.plan()
        try:
            while reading.names or reading.pending:
                while reading.pending:
                    yield reading.pending.popitem(last=False)
                if reading.names:
                    await self._news(reading)
        finally:
            self._readings.remove(reading)
            if not self._watches():
                self._newest.clear()
            if reading.names:  # workers still read them
                self._membership.plan()

    async def _news(self, reading: _Reading) -> None:
        while not reading.pending:
            if self._closed:
                raise FleetError("the fleet was closed")
            if time.monotonic() > self._membership.heard_at + self._patience:
                raise self._no_answer()
            reading.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await reading.changed.wait()

    def _watches(self) -> list[_Reading]:
        return [each for each in self._readings if each.every is not None]

    # -- for the membership -----------------------------------------------------------------

    def _wanted(self) -> dict[str, tuple[int, float | None]]:
        wanted: dict[str, tuple[int, float | None]] = {}
        for reading in self._readings:
            for name in reading.names:
                number, every = wanted.get(name, (0, None))
                if reading.every is None:  # a read for the newest reading serves earlier ones, too
                    wanted[name] = reading.number, every
                else:  # the shortest interval; the push channel has every change
                    both = (reading.every, every)
                    wanted[name] = number, min(each for each in both if each is not None)
        return wanted

    def _take(self, name: str, number: int, value: Any) -> None:
        if number:
            for reading in self._readings:
                if reading.every is None and reading.number <= number and name in reading.names:
                    del reading.names[name]
                    reading.add(name, value)
            return
        moment = value.get("timestamp") if isinstance(value, dict) else None
        if moment is not None:
            if moment < self._published.get(name, moment):
                return  # from before its worker was lost
            self._published[name] = moment
        for reading in self._watches():
            self._newest[name] = value
            if name in reading.names:
                reading.add(name, value)
