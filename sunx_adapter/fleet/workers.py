"""Who owns what: the workers of a cluster, and the users whose accounts each of them reads.

The engine says which workers there are and carries calls to them; no task is scheduled. Each user
belongs to one worker, chosen by rendezvous hashing, so that a worker that joins or leaves moves
only the accounts that have to move. A worker confirms what it lets go; if it is gone or silent, the
next owner waits until its lease has ended and its last read is out of the venue's window.
"""

import asyncio
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from distributed import Client

from sunx_adapter.fleet import worker
from sunx_adapter.fleet.messages import (
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Assignment,
    Released,
    Report,
    Request,
    unpacked,
)

_logger: Final = logging.getLogger(__name__)

# Before its accounts may be read by others there is nothing to win by giving it up.
_SILENT_SECONDS: Final = LEASE_SECONDS + WINDOW_SECONDS - 0.5
_LOOK_SECONDS: Final = 0.25
_LATE_SECONDS: Final = 1.0
_SLOTS: Final = 4096
_LEAVING: Final = sys.maxsize


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


class Workers:
    """The workers of a cluster.

    Args:
        fleet: the fleet's number: a cluster may serve several.
        users: for each user the names of the accounts.
        connect: gives a client of the engine; called again if that one has ended.
        work: gives what is to be done with the accounts that a worker owns, as an assignment.
        take: called with each piece of news: the request's number, the name, the balance.

    Attributes:
        heard: when a worker last answered, on :func:`time.monotonic`'s clock.
        trouble: what went wrong last.
    """

    def __init__(
        self,
        fleet: str,
        users: Mapping[str, list[str]],
        *,
        connect: Callable[[], Awaitable[Client]],
        work: Callable[[Collection[str]], Assignment],
        take: Callable[[int, str, Any], None],
    ) -> None:
        self._fleet = fleet
        self._users = [_User(text, names) for text, names in users.items()]
        self._user_of = {name: user for user in self._users for name in user.names}
        self._connect, self._work, self._take = connect, work, take
        self._client: Client
        self._is_connected = False
        self._members: dict[str, _Member] = {}
        self._generations = itertools.count(1)
        self._looking: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self.heard = time.monotonic()
        self.trouble = "the cluster has no worker"

    @property
    def addresses(self) -> list[str]:
        """Of the workers that answer."""
        return sorted(each.address for each in self._members.values() if each.is_present)

    async def join(self, expected: Callable[[], int]) -> None:
        """Connect, and wait until so many workers answer as are expected once connected."""
        while not self._is_connected:
            with self._in_trouble():
                self._client = await self._connect()
                self._is_connected = True
            await asyncio.sleep(0 if self._is_connected else _LOOK_SECONDS)
        self._looking = asyncio.create_task(self._look())
        while len(self.addresses) < expected():
            self._joined.clear()
            await self._joined.wait()

    async def leave(self) -> None:
        """Have the workers let everything go."""
        addresses = self.addresses
        tasks = [task for member in self._members.values() for task in member.tasks]
        tasks += [] if self._looking is None else [self._looking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._members = {}
        if addresses:
            with contextlib.suppress(Exception):  # a worker that cannot be told will notice
                leaving = self._client.run(
                    worker.leave, self._fleet, workers=addresses, on_error="ignore"
                )
                await asyncio.wait_for(leaving, LEASE_SECONDS)

    # -- who owns what ----------------------------------------------------------------------

    def plan(self) -> None:
        """Give each user the home that it should have, and each worker its assignment."""
        best = _best(tuple(self.addresses))
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
        work, before = self._work(owned.keys()), member.assignment
        if (owned.keys(), work.watched, work.reads) == (
            before.owned.keys(),
            before.watched,
            before.reads,
        ):
            return
        generation = next(self._generations)
        member.assignment = replace(work, generation=generation, owned=owned)
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
        self.plan()

    # -- talking to the workers -------------------------------------------------------------

    async def _look(self) -> None:
        """See which workers there are, and which are silent."""
        while True:
            due = time.monotonic() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() > due + _LATE_SECONDS:
                continue  # this process was busy: others are not to blame for their silence
            with self._in_trouble():
                self._meet(set(await asyncio.wait_for(self._client.nthreads(), _LATE_SECONDS)))
            if self._client.status == "closed":
                with self._in_trouble():
                    self._client = await self._connect()

    @contextlib.contextmanager
    def _in_trouble(self) -> Iterator[None]:
        """Whatever goes wrong is tried again, and told if nothing else works either."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine's, and of any kind
            self.trouble = f"{type(error).__name__}: {error}"

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
            _logger.info("worker %s %s", member.address, "answers" if present else "is lost")
            self._joined.set()
            self.plan()

    def _drop(self, member: _Member) -> None:
        """It is gone, or another process has its address."""
        if self._members.get(member.address) is member:
            del self._members[member.address]
            self._see(member, present=False)
            for task in member.tasks:
                task.cancel()

    async def _run(self, member: _Member, function: Any, argument: object) -> Any:
        arguments = (function, self._fleet, argument)
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
            member.heard = self.heard = time.monotonic()
            taken = report.last or request.taken
            member.request = Request(report.worker, 0, report.stamp, taken)
            self._see(member, present=True)
            for number, name, data in report.news:
                if self._user_of[name].home is member:
                    self._take(number, name, unpacked(data))

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
