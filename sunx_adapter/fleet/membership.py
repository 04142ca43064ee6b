"""Which worker owns which accounts.

The engine lists the workers and carries calls to them; no task is scheduled. Each user belongs to
one worker, chosen by rendezvous hashing, so that a worker that joins or leaves moves few accounts.
A worker confirms which accounts it released. If it is gone or silent, the next owner waits until
the worker's lease has ended and its last read has left the venue's window.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from distributed import Client

from sunx_adapter.fleet import plugin
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

# Removing a silent worker earlier gains nothing: nobody may read its accounts before that.
_SILENT_SECONDS: Final = LEASE_SECONDS + WINDOW_SECONDS - 0.5
_LOOK_SECONDS: Final = 0.25
_LATE_SECONDS: Final = 1.0
_SLOTS: Final = 4096


class _Member:
    """A worker of the cluster.

    Attributes:
        address: where it listens.
        has_answered: whether it may own accounts.
        heard_at: when its last report arrived; the report may have renewed its lease.
        request: what the next call of ``collect`` sends.
        assignment: its newest; ``owned`` has times on our clock instead of seconds.
        changed: set when the worker needs that assignment.
        tasks: those that call it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.has_answered = False
        self.heard_at = time.monotonic()
        self.request = Request()
        self.assignment = Assignment(0)
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []


class _User:
    """Accounts that share a read budget, their owner, and when the next owner may read them."""

    def __init__(self, text: str, names: list[str]) -> None:
        self.names = names
        self.slot = _hash(text) % _SLOTS
        self.owner: _Member | None = None
        self.free_at = 0.0


class Membership:
    """The workers of a cluster and the accounts that each of them owns.

    Args:
        fleet: the fleet's id: a cluster may serve several.
        users: for each user the names of the accounts.
        template: the assignments' keys file and type of numbers.
        connect: gives a client of the engine; called again if that one has ended.
        work: gives ``watched`` and ``reads`` of an assignment with these accounts.
        take: called with each balance: the number of the reading, the name, the balance.

    Attributes:
        heard_at: when a worker last answered, on :func:`time.monotonic`'s clock.
        trouble: the last error.
    """

    def __init__(
        self,
        fleet: str,
        users: Mapping[str, list[str]],
        template: Assignment,
        *,
        connect: Callable[[], Awaitable[Client]],
        work: Callable[[Collection[str]], tuple[dict[str, float], dict[int, Sequence[str]]]],
        take: Callable[[int, str, Any], None],
    ) -> None:
        self._fleet, self._template = fleet, template
        self._users = [_User(text, names) for text, names in users.items()]
        self._user_of = {name: user for user in self._users for name in user.names}
        self._connect, self._work, self._take = connect, work, take
        self._client: Client
        self._is_connected = False
        self._members: dict[str, _Member] = {}
        self._generations = itertools.count(1)
        self._looking: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self.heard_at = time.monotonic()
        self.trouble = "the cluster has no worker"

    @property
    def addresses(self) -> list[str]:
        """The addresses of the workers that answer."""
        return sorted(each.address for each in self._members.values() if each.has_answered)

    async def join(self, expected: Callable[[], int]) -> None:
        """Connect, and wait for the number of workers that is expected once connected."""
        while not self._is_connected:
            with self._noting_trouble():
                self._client = await self._connect()
                self._is_connected = True
            await asyncio.sleep(0 if self._is_connected else _LOOK_SECONDS)
        self._looking = asyncio.create_task(self._look())
        while len(self.addresses) < expected():
            self._joined.clear()
            await self._joined.wait()

    async def leave(self) -> None:
        """Have the workers release all accounts."""
        addresses = self.addresses
        tasks = [task for member in self._members.values() for task in member.tasks]
        tasks += [] if self._looking is None else [self._looking]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEASE_SECONDS)  # the engine may be slow to give up
        self._members = {}
        if addresses:
            with contextlib.suppress(Exception):  # without its lease, a worker stops by itself
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._client.run(
                        plugin.leave, self._fleet, workers=addresses, on_error="ignore"
                    )

    # -- who owns what ----------------------------------------------------------------------

    def plan(self) -> None:
        """Choose an owner for each user, and an assignment for each worker."""
        owners = _owners(tuple(self.addresses))
        if not owners:
            return
        owned: dict[str, dict[str, float]] = {address: {} for address in self.addresses}
        for user in self._users:
            address, owner = owners[user.slot], user.owner
            if owner is not None and self._members.get(owner.address) is not owner:
                lost = owner.heard_at + LEASE_SECONDS + WINDOW_SECONDS
                user.free_at, owner = max(user.free_at, lost), None
            if owner is None:
                owner = user.owner = self._members[address]
            if owner.address == address:  # else it first has to release the user
                owned[address] |= dict.fromkeys(user.names, user.free_at)
        for address, names in owned.items():
            self._assign(self._members[address], names)

    def _assign(self, member: _Member, owned: dict[str, float]) -> None:
        before = member.assignment
        watched, reads = self._work(owned.keys())
        if (owned.keys(), watched, reads) != (before.owned.keys(), before.watched, before.reads):
            member.assignment = replace(
                self._template,
                generation=next(self._generations),
                owned=owned,
                watched=watched,
                reads=reads,
            )
            member.changed.set()

    def _release(
        self, member: _Member, kept: Collection[str], pending: Mapping[str, float]
    ) -> None:
        """The worker confirmed that it owns only these accounts."""
        now, moved = time.monotonic(), False
        for user in self._users:
            if user.owner is member and user.names[0] not in kept:
                wait = max(pending.get(name, 0.0) for name in user.names)
                user.owner, user.free_at, moved = None, max(user.free_at, now + wait), True
        if moved:
            self.plan()

    # -- calls to the workers ---------------------------------------------------------------

    async def _look(self) -> None:
        """Keep the list of workers current."""
        while True:
            due = time.monotonic() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() > due + _LATE_SECONDS:
                continue  # this process was busy: the workers may have answered in time
            with self._noting_trouble():
                async with asyncio.timeout(_LATE_SECONDS):
                    addresses = await self._client.nthreads()
                self._update(set(addresses))
            if self._client.status == "closed":
                with self._noting_trouble():
                    self._client = await self._connect()

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Whatever fails is tried again; the error is shown if nothing else works either."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine may raise anything
            self.trouble = f"{type(error).__name__}: {error}"

    def _update(self, addresses: set[str]) -> None:
        now = time.monotonic()
        for member in list(self._members.values()):
            is_silent = member.has_answered and now > member.heard_at + _SILENT_SECONDS
            if is_silent or member.address not in addresses:
                self._remove(member)
        for address in addresses - self._members.keys():
            member = self._members[address] = _Member(address)
            calls = (self._collect(member), self._send_assignments(member))
            member.tasks = [asyncio.create_task(call) for call in calls]

    def _remove(self, member: _Member) -> None:
        """It is gone or silent, or another process has its address."""
        if self._members.get(member.address) is member:
            del self._members[member.address]
            if member.has_answered:
                _logger.info("worker %s is lost", member.address)
                self.plan()
            for task in member.tasks:
                task.cancel()

    async def _run(self, member: _Member, function: Any, argument: object) -> Any:
        arguments = (function, self._fleet, argument)
        return (await self._client.run(*arguments, workers=[member.address]))[member.address]

    async def _collect(self, member: _Member) -> None:
        """Collect balances for as long as the worker is there."""
        while True:
            request = replace(member.request, generation=member.assignment.generation)
            report: Report | None = None
            with self._noting_trouble():
                report = await self._run(member, plugin.collect, request)
            if report is None:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            if request.worker not in ("", report.worker):
                self._remove(member)
                return
            member.heard_at = self.heard_at = time.monotonic()
            member.request = Request(report.worker, received=report.number)
            if not member.has_answered:
                _logger.info("worker %s answers", member.address)
                member.has_answered = True
                self._joined.set()
                self.plan()
            for number, name, data in report.balances:
                if self._user_of[name].owner is member:
                    self._take(number, name, unpacked(data))

    async def _send_assignments(self, member: _Member) -> None:
        """Send each new assignment until the worker confirms it or there is a newer one."""
        while True:
            await member.changed.wait()
            member.changed.clear()
            assignment, now = member.assignment, time.monotonic()
            waits = {name: max(moment - now, 0.0) for name, moment in assignment.owned.items()}
            released: Released | None = None
            with self._noting_trouble():
                sent = replace(assignment, worker=member.request.worker, owned=waits)
                released = await self._run(member, plugin.assign, sent)
            if released is None:
                await asyncio.sleep(_LOOK_SECONDS)
                member.changed.set()
            elif released.worker != member.request.worker:
                self._remove(member)
                return
            else:
                self._release(member, assignment.owned.keys(), released.pending)


@lru_cache(maxsize=1)
def _owners(addresses: tuple[str, ...]) -> list[str]:
    """The worker's address for each slot of users, by rendezvous hashing."""
    weights = [_weights(address) for address in addresses]
    return [max(zip(each, addresses, strict=True))[1] for each in zip(*weights, strict=True)]


@lru_cache(maxsize=1024)
def _weights(address: str) -> list[int]:
    return [_hash(f"{address} {slot}") for slot in range(_SLOTS)]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
