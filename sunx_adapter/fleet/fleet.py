"""What an application uses: it divides the accounts among the workers and collects balances.

The engine says which workers there are and carries calls to them; no task is scheduled. Each user
belongs to one worker, chosen by rendezvous hashing, so that a worker that joins or leaves moves
only the accounts that have to move. A worker confirms what it lets go; one that is gone or silent
is given the time until its lease has ended and its last read is out of the venue's window.
"""

import asyncio
import contextlib
import itertools
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self

import dask
from distributed import Client, LocalCluster, Security

from sunx_adapter.fleet import worker
from sunx_adapter.fleet.accounts import read_accounts, users
from sunx_adapter.fleet.messages import (
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Assignment,
    Released,
    Report,
    Request,
    unpacked,
)
from sunx_adapter.keys import KEYS_FILE_VARIABLE

_SILENT_SECONDS: Final = LEASE_SECONDS + 0.5
_LOOK_SECONDS: Final = 0.25
_LATE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 60.0
_JOIN_SECONDS: Final = 30.0
_SLOTS: Final = 4096
_LEAVING: Final = sys.maxsize


class FleetError(Exception):
    """The fleet cannot go on; the text says what to do."""


class _Member:
    """One worker."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_present = False
        """Whether it answers."""
        self.heard = time.monotonic()
        """When its last report arrived; until then its lease may have been renewed."""
        self.request = Request()
        self.assignment = Assignment(0, "", float, {})
        """Its ``owned`` has the moments from which accounts may be read, by our clock."""
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []


class _User:
    """Accounts that share a read budget, and the worker that owns them."""

    def __init__(self, text: str, names: list[str]) -> None:
        self.names = names
        self.slot = _number_of(text) % _SLOTS
        self.home: _Member | None = None
        self.left: int | None = None
        """If its home is to let go of it: the generation of the assignment that says so."""
        self.free_at = 0.0
        """From when on its next owner may read it."""


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
        self.news: dict[str, Any] = {}
        self.changed = asyncio.Event()

    def add(self, name: str, value: Any) -> None:
        """Keep the newest."""
        self.news[name] = value
        self.changed.set()

    def taken(self) -> tuple[str, Any]:
        """The account whose news have waited for longest."""
        name = next(iter(self.news))
        return name, self.news.pop(name)


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
        accounts: the keys file, with a table per account, ``exchange = "sunx"`` in it. A worker
            reads a file of its own: what ``SUNX_ADAPTER_KEYS`` names there, else the same path.
        scheduler: address of a scheduler that runs already, ``"tls://host:8786"``.
        security: certificates for it.
        client: a client that the application has, instead of a scheduler; it stays open.
        workers: how many processes to start on this machine; default: one for each core.
        number: the type of the balances' figures: ``float``, ``str`` or ``decimal.Decimal``.

    Raises:
        KeysError: the keys file cannot be used.
        FleetError: when it is entered: there is no scheduler, or it has no worker.
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
    ) -> None:
        self._file = str(Path(accounts).expanduser().absolute())
        by_user = users(read_accounts(self._file))
        self._users = [_User(text, names) for text, names in by_user.items()]
        self._user_of = {name: user for user in self._users for name in user.names}
        self._scheduler, self._security, self._workers = scheduler, security, workers
        self._number = number
        self._given = client
        self._id = uuid.uuid4().hex
        self._open = contextlib.AsyncExitStack()
        self._members: dict[str, _Member] = {}
        self._generations = itertools.count(1)
        self._readings: dict[int, _Reading] = {}
        self._numbers = itertools.count(1)
        self._newest: dict[str, Any] = {}
        self._published: dict[str, int] = {}
        self._joined = asyncio.Event()
        self._failure: FleetError | None = None
        self._trouble = "the cluster has no worker"

    @property
    def names(self) -> list[str]:
        """The accounts."""
        return list(self._user_of)

    @property
    def workers(self) -> list[str]:
        """The addresses of the workers that answer."""
        return sorted(each.address for each in self._members.values() if each.is_present)

    # -- open and close ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            self._client = await self._connected()
            self._looking = asyncio.create_task(self._look())
            await asyncio.wait_for(self._joined.wait(), _JOIN_SECONDS)
        except (OSError, TimeoutError) as error:
            await self.close()
            reason = self._trouble if isinstance(error, TimeoutError) else str(error)
        except BaseException:
            await self.close()
            raise
        else:
            return self
        raise FleetError(f"no worker answered within {_JOIN_SECONDS:g} s: {reason}")

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all reading, and the cluster if it was started here."""
        self._fail(FleetError("the fleet was closed"))
        here = self.workers
        tasks = [task for member in self._members.values() for task in member.tasks]
        tasks += [self._looking] if self._looking else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._members = {}
        if here:
            with contextlib.suppress(Exception):  # a worker that cannot be told will notice
                leaving = self._client.run(worker.leave, self._id, workers=here, on_error="ignore")
                await asyncio.wait_for(leaving, LEASE_SECONDS)
        await self._open.aclose()

    async def _connected(self) -> Client:
        given, scheduler, security = self._given, self._scheduler, self._security
        if given is not None:
            if given.asynchronous and given.loop.asyncio_loop is asyncio.get_running_loop():
                return given
            # It runs in another thread: one of our own to the same scheduler.
            scheduler, security = given.scheduler.address, given.security
        if scheduler is None:
            # Otherwise the scheduler makes a connection for each call.
            kept = {"distributed.scheduler.reuse-broadcast-comm": True}
            self._open.enter_context(dask.config.set(kept))
            security = Security.temporary()
            cluster = LocalCluster(
                n_workers=self._workers,
                threads_per_worker=1,
                processes=True,
                asynchronous=True,
                silence_logs=logging.CRITICAL,
                security=security,
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                env={KEYS_FILE_VARIABLE: self._file},
            )
            scheduler = (await self._open.enter_async_context(cluster)).scheduler_address
        client = Client(scheduler, security=security, asynchronous=True, set_as_default=False)
        return await self._open.enter_async_context(client)

    # -- what an application asks -----------------------------------------------------------

    async def fetch_balances(
        self, names: Iterable[str] | None = None
    ) -> AsyncIterator[tuple[str, dict[str, Any] | Exception]]:
        """Read each account once; balances come in the order in which they arrive.

        Args:
            names: of the accounts; default: all.

        Yields:
            The name and the balance, as the exchange's ``fetch_balance()`` gives it, or the
            exception that it raises. Each account comes exactly once, whatever happens to workers.

        Raises:
            KeyError: there is no such account.
            FleetError: the fleet was closed, or no worker has answered for a minute.
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
    ) -> AsyncIterator[tuple[str, dict[str, Any] | Exception]]:
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
            FleetError: the fleet was closed, or no worker has answered for a minute.
        """
        reading = _Reading(self.names if names is None else names, every or 0.0)
        reading.news |= {n: self._newest[n] for n in reading.missing if n in self._newest}
        with self._reads(reading):
            while True:
                await self._next(reading)
                while reading.news:
                    yield reading.taken()

    @contextlib.contextmanager
    def _reads(self, reading: _Reading) -> Iterator[None]:
        if unknown := [name for name in reading.missing if name not in self._user_of]:
            raise KeyError(f"no account {unknown[0]!r} in {self._file}")
        number = next(self._numbers)
        self._readings[number] = reading
        self._plan()
        try:
            yield
        finally:
            del self._readings[number]
            if all(each.every is None for each in self._readings.values()):
                self._newest.clear()
            self._plan()

    async def _next(self, reading: _Reading) -> None:
        while not reading.news:
            if self._failure is not None:
                raise FleetError(str(self._failure))
            reading.changed.clear()
            await reading.changed.wait()

    def _fail(self, failure: FleetError) -> None:
        self._failure = failure
        for reading in self._readings.values():
            reading.changed.set()

    # -- who owns what ----------------------------------------------------------------------

    def _plan(self) -> None:
        """Give each user the home that it should have, and each worker its assignment."""
        best = _best(tuple(self.workers))
        for user in self._users if best else ():
            home = user.home
            target = self._members[best[user.slot]]
            if home is target:
                user.left = None
            elif home is not None and home.is_present:
                user.left = user.left or _LEAVING
            else:
                if home is not None:
                    user.free_at = home.heard + LEASE_SECONDS + WINDOW_SECONDS
                user.home, user.left = target, None
        for member in self._members.values():
            self._assign(member)

    def _assign(self, member: _Member) -> None:
        owned = {
            name: user.free_at
            for user in self._users
            if user.home is member and user.left is None
            for name in user.names
        }
        watched: dict[str, float] = {}
        reads: dict[int, tuple[str, ...]] = {}
        for number, reading in self._readings.items():
            names = [name for name in reading.missing if name in owned]
            if reading.every is None:
                reads[number] = tuple(names)
            else:  # of several the most frequent; the push channel has every change
                watched |= {n: min(watched.get(n, reading.every), reading.every) for n in names}
        before = member.assignment
        if (owned.keys(), watched, reads) == (before.owned.keys(), before.watched, before.reads):
            return
        generation = next(self._generations)
        member.assignment = Assignment(generation, self._file, self._number, owned, watched, reads)
        member.changed.set()
        for user in self._users:
            if user.home is member and user.left == _LEAVING:
                user.left = generation

    def _released(self, member: _Member, generation: int, busy: Mapping[str, float]) -> None:
        now = time.monotonic()
        for user in self._users:
            if user.home is member and user.left is not None and user.left <= generation:
                user.home, user.left = None, None
                user.free_at = now + max(busy.get(name, 0.0) for name in user.names)
        self._plan()

    # -- talking to the workers -------------------------------------------------------------

    async def _look(self) -> None:
        """See which workers there are, and which are silent."""
        answered = time.monotonic()
        while True:
            due = time.monotonic() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() > due + _LATE_SECONDS:
                continue  # this process was busy: others are not to blame for their silence
            with self._in_trouble():
                self._meet(set(await asyncio.wait_for(self._client.nthreads(), _LATE_SECONDS)))
            if self._client.status == "closed" and self._scheduler is not None:
                with self._in_trouble():
                    self._client = await self._connected()
            if self._joined.is_set():
                answered, self._failure = time.monotonic(), None
            elif time.monotonic() > answered + _PATIENCE_SECONDS:
                self._fail(FleetError(f"no worker answers: {self._trouble}"))

    @contextlib.contextmanager
    def _in_trouble(self) -> Iterator[None]:
        """Whatever goes wrong is tried again, and told if nothing else works either."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine's, and of any kind
            self._trouble = f"{type(error).__name__}: {error}"

    def _meet(self, addresses: set[str]) -> None:
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.address not in addresses:
                self._drop(member)
            elif now > member.heard + _SILENT_SECONDS:
                self._see(member, present=False)
        for address in addresses - self._members.keys():
            member = self._members[address] = _Member(address)
            tasks = (self._collect(member), self._keep_assigned(member))
            member.tasks = [asyncio.create_task(task) for task in tasks]

    def _see(self, member: _Member, *, present: bool) -> None:
        if member.is_present != present:
            member.is_present = present
            if self.workers:
                self._joined.set()
            else:
                self._joined.clear()
            self._plan()

    def _drop(self, member: _Member) -> None:
        """It is gone, or another process has its address."""
        if self._members.get(member.address) is member:
            del self._members[member.address]
            self._see(member, present=False)
            for task in member.tasks:
                task.cancel()

    async def _run(self, member: _Member, function: Any, argument: object) -> Any:
        arguments = (function, self._id, argument)
        return (await self._client.run(*arguments, workers=[member.address]))[member.address]

    async def _collect(self, member: _Member) -> None:
        """Collect what is new, for as long as the worker is there."""
        while True:
            request = replace(member.request, generation=member.assignment.generation)
            report: Report | None = None
            with self._in_trouble():
                report = await self._run(member, worker.collect, request)
            if report is None:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            if request.worker not in ("", report.worker):
                self._drop(member)
                return
            member.heard = time.monotonic()
            taken = report.last or request.taken
            member.request = Request(report.worker, 0, report.stamp, taken)
            self._see(member, present=True)
            for number, name, data in report.news:
                if self._user_of[name].home is member:
                    self._take(number, name, unpacked(data))

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
                return
            self._published[name] = moment
        self._newest[name] = value
        for reading in self._readings.values():
            if reading.every is not None and name in reading.missing:
                reading.add(name, value)

    async def _keep_assigned(self, member: _Member) -> None:
        """Have the worker know its newest assignment."""
        while True:
            await member.changed.wait()
            member.changed.clear()
            assignment, now = member.assignment, time.monotonic()
            waits = {name: max(moment - now, 0.0) for name, moment in assignment.owned.items()}
            released: Released | None = None
            with self._in_trouble():
                sent = replace(assignment, worker=member.request.worker, owned=waits)
                released = await self._run(member, worker.assign, sent)
            if released is None:
                await asyncio.sleep(_LOOK_SECONDS)
                member.changed.set()
            elif released.worker != member.request.worker:
                self._drop(member)
                return
            else:
                self._released(member, assignment.generation, released.busy)


@lru_cache(maxsize=1)
def _best(addresses: tuple[str, ...]) -> list[str]:
    """The worker for each slot of users: by rendezvous hashing, few move if one comes or goes."""
    weights = [_weights(address) for address in addresses]
    return [max(zip(each, addresses, strict=True))[1] for each in zip(*weights, strict=True)]


@lru_cache(maxsize=1024)
def _weights(address: str) -> list[int]:
    return [_number_of(f"{address} {slot}") for slot in range(_SLOTS)]


def _number_of(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
