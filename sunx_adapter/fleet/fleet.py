"""What an application uses: the accounts of a keys file, read and watched by the workers."""

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Self

import dask
from distributed import Client, LocalCluster, Security

from sunx_adapter.fleet.accounts import users
from sunx_adapter.fleet.messages import Assignment
from sunx_adapter.fleet.workers import Workers
from sunx_adapter.keys import KEYS_FILE_VARIABLE, accounts_from_file


class FleetError(Exception):
    """The fleet cannot go on; the text says what to do."""


class _Reading:
    """A call of ``fetch_balances()`` or ``watch_balances()``.

    Attributes:
        missing: the names of the accounts that are asked for.
        every: see ``watch_balances()``; ``None`` for ``fetch_balances()``.
        news: what arrived, and was not handed over yet.
    """

    def __init__(self, names: Iterable[str], every: float | None = None) -> None:
        self.missing = dict.fromkeys(names)
        self.every = every
        self.news: OrderedDict[str, Any] = OrderedDict()
        self.changed = asyncio.Event()

    def add(self, name: str, value: Any) -> None:
        """Keep the newest."""
        self.news[name] = value
        self.changed.set()

    def taken(self) -> tuple[str, Any]:
        """The account whose news have waited for longest."""
        return self.news.popitem(last=False)


class Fleet:
    """Reads and watches any number of accounts on the workers of a cluster.

    ::

        async with Fleet("accounts.toml") as fleet:
            async for name, balance in fleet.fetch_balances():
                ...

    Without a scheduler or client it starts a cluster on this machine, over TLS with certificates of
    its own, and ends it again. That makes new processes, so the program must begin behind
    ``if __name__ == "__main__":``.

    Args:
        accounts: the keys file, see :mod:`sunx_adapter.keys`. A worker takes keys from its own
            environment, and from its own file: the one that ``SUNX_ADAPTER_KEYS`` names there, else
            the same path. So this file need not hold any key, only each account's ``uid``.
        scheduler: address of a scheduler that runs already, ``"tls://host:8786"``.
        security: certificates for it.
        client: a client that the application has, instead of a scheduler; it stays open.
        workers: how many processes to start on this machine; default: one for each core.
        number: the type of the balances' figures: ``float``, ``str`` or ``decimal.Decimal``.
        patience: seconds to wait while no worker answers, at the start and later.

    Raises:
        KeysError: the keys file cannot be used.
        FleetError: when it is entered: no worker answered.
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
        self._scheduler, self._security, self._given = scheduler, security, client
        self._processes, self._number, self._patience = workers, number, patience
        self._expected = 1
        by_user = users(accounts_from_file(file))
        self._names = [name for names in by_user.values() for name in names]
        self._workers = Workers(
            uuid.uuid4().hex, by_user, connect=self._connect, work=self._work, take=self._take
        )
        self._open = contextlib.AsyncExitStack()
        self._closed = False
        self._readings: dict[int, _Reading] = {}
        self._numbers = itertools.count(1)
        self._newest: dict[str, Any] = {}
        self._published: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The accounts."""
        return list(self._names)

    @property
    def workers(self) -> list[str]:
        """The addresses of the workers that answer."""
        return self._workers.addresses

    # -- open and close ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._patience):
                await self._workers.join(lambda: self._expected)
        except TimeoutError:
            await self.close()
        except BaseException:
            await self.close()
            raise
        else:
            return self
        trouble = self._workers.trouble
        raise FleetError(f"no worker answered within {self._patience:g} s: {trouble}")

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all reading, and the cluster if it was started here."""
        self._closed = True
        for reading in self._readings.values():
            reading.changed.set()
        await self._workers.leave()
        await self._open.aclose()

    async def _connect(self) -> Client:
        given = self._given
        if given is not None:
            loop = getattr(given.loop, "asyncio_loop", None)
            if given.asynchronous and loop is asyncio.get_running_loop():
                return given
            # It belongs to another thread: one of our own, to the same scheduler.
            self._scheduler = getattr(given.scheduler, "address", None)
            self._security = given.security
        if self._scheduler is None:
            await self._start_cluster()
        client = Client(
            self._scheduler, security=self._security, asynchronous=True, set_as_default=False
        )
        try:
            await client
        except BaseException:
            with contextlib.suppress(Exception):  # it never connected
                await client.close()
            raise
        self._open.push_async_callback(client.close)
        return client

    async def _start_cluster(self) -> None:
        settings = {
            # Else the scheduler makes a connection for each call, and workers sample their threads.
            "distributed.scheduler.reuse-broadcast-comm": True,
            "distributed.worker.profile.enabled": False,
        }
        self._open.enter_context(dask.config.set(settings))
        self._security = Security.temporary()
        cluster = LocalCluster(
            n_workers=self._processes,
            threads_per_worker=1,
            processes=True,
            asynchronous=True,
            silence_logs=logging.CRITICAL,
            security=self._security,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            env={KEYS_FILE_VARIABLE: self._file},
        )
        await self._open.enter_async_context(cluster)
        self._scheduler, self._expected = cluster.scheduler_address, len(cluster.workers)

    # -- what an application asks -----------------------------------------------------------

    async def fetch_balances(
        self, names: Iterable[str] | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any] | Exception], None]:
        """Read each account once; balances come in the order in which they arrive.

        Args:
            names: of the accounts; default: all.

        Yields:
            The name and the balance, as the exchange's ``fetch_balance()`` gives it, or the
            exception that it raises. Each account comes exactly once, whatever happens to workers.

        Raises:
            KeyError: there is no such account.
            FleetError: the fleet was closed, or no worker has answered for ``patience``.
        """
        reading = _Reading(self.names if names is None else names)
        left = len(reading.missing)
        with self._reads(reading):
            while left:
                await self._next(reading)
                while reading.news:
                    left -= 1
                    yield reading.taken()

    async def watch_balances(
        self, names: Iterable[str] | None = None, every: float | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any] | Exception], None]:
        """The newest balance of each account as it changes, until the fleet is closed.

        Who is slow gets the newest of each account, and not what was in between.

        Args:
            names: of the accounts; default: all.
            every: seconds between two reads of an account; default: the push channel, or every
                3 s where the exchange has none. Polled balances come whether they changed or not.

        Yields:
            The name and the balance, or the exception that says why there is none now; watching
            goes on. A balance is never older than one that came before.

        Raises:
            KeyError: there is no such account.
            FleetError: the fleet was closed, or no worker has answered for ``patience``.
        """
        reading = _Reading(self.names if names is None else names, every or 0.0)
        reading.news.update({n: self._newest[n] for n in reading.missing if n in self._newest})
        with self._reads(reading):
            while True:
                await self._next(reading)
                while reading.news:
                    yield reading.taken()

    @contextlib.contextmanager
    def _reads(self, reading: _Reading) -> Iterator[None]:
        if unknown := reading.missing.keys() - set(self._names):
            raise KeyError(f"no account {min(unknown)!r} in {self._file}")
        number = next(self._numbers)
        self._readings[number] = reading
        self._workers.plan()
        try:
            yield
        finally:
            del self._readings[number]
            if all(each.every is None for each in self._readings.values()):
                self._newest.clear()
            self._workers.plan()

    async def _next(self, reading: _Reading) -> None:
        while not reading.news:
            if self._closed:
                raise FleetError("the fleet was closed")
            if time.monotonic() > self._workers.heard + self._patience:
                raise FleetError(f"no worker answers: {self._workers.trouble}")
            reading.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading.changed.wait(), 1.0)

    # -- what the workers are to do, and what they found ------------------------------------

    def _work(self, owned: Collection[str]) -> Assignment:
        watched: dict[str, float] = {}
        reads: dict[int, tuple[str, ...]] = {}
        for number, reading in self._readings.items():
            names = [name for name in reading.missing if name in owned]
            if reading.every is None:
                reads[number] = tuple(names)
            else:  # of several the most frequent; the push channel has every change
                watched |= {n: min(watched.get(n, reading.every), reading.every) for n in names}
        return Assignment(0, self._file, self._number, {}, watched, reads)

    def _take(self, number: int, name: str, value: Any) -> None:
        if number:
            reading = self._readings.get(number)
            if reading is not None and name in reading.missing:
                del reading.missing[name]
                reading.add(name, value)
            return
        moment = value.get("timestamp") if isinstance(value, dict) else None
        if moment is not None:
            if moment < self._published.get(name, moment):
                return  # from before its worker was lost
            self._published[name] = moment
        self._newest[name] = value
        for reading in self._readings.values():
            if reading.every is not None and name in reading.missing:
                reading.add(name, value)
