"""Decides which worker owns which accounts.

The engine lists the workers and transports calls to them; no task is scheduled. Each user belongs
to one worker, chosen by rendezvous hashing, so that few accounts move when a worker joins or
leaves. A worker confirms which accounts it has released. If a worker is gone or silent, the next
owner waits until the worker's lease has ended and its last read has left the venue's window.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from distributed import Client

from sunx_adapter.fleet import worker
from sunx_adapter.fleet.messages import (
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Assignment,
    Report,
    Work,
    unpacked,
)

_logger: Final = logging.getLogger(__name__)

# It would not help to give up a silent worker earlier: nobody may read its accounts before that.
_SILENT_SECONDS: Final = LEASE_SECONDS + WINDOW_SECONDS - 0.5
_LOOK_SECONDS: Final = 0.25
_LATE_SECONDS: Final = 1.0


class _Member:
    """A worker, from its first report to the first call that fails.

    Attributes:
        address: the worker's address.
        heard_at: when its last report arrived; the report may have renewed its lease.
        owned: the accounts that it is to own.
        changed: set when ``owned`` changes.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard_at = time.monotonic()
        self.owned: dict[str, Work] = {}
        self.changed = asyncio.Event()


class _User:
    """Accounts that share a read limit, their owner, and when the next owner may read them."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.owner: _Member | None = None
        self.free_at = 0.0


class Membership:
    """The workers of a cluster and the accounts that each of them owns.

    Args:
        users: the names of each user's accounts.
        template: an assignment with the keys file and the type of figures.
        connect: returns a client of the engine; called again after that client has ended.
        wanted: returns ``reading`` and ``every`` of ``Work`` for each account that has work.
        take: called with each balance: the name, the number of the reading, the balance.

    Attributes:
        heard_at: when a worker last answered, on :func:`time.monotonic`'s clock.
        trouble: the last error.
    """

    def __init__(
        self,
        users: Mapping[str, list[str]],
        template: Assignment,
        *,
        connect: Callable[[], Awaitable[Client]],
        wanted: Callable[[], Mapping[str, tuple[int, float | None]]],
        take: Callable[[str, int, Any], None],
    ) -> None:
        self._fleet, self._template = uuid.uuid4().hex, template
        self._keys = tuple(users)
        self._users = [_User(names) for names in users.values()]
        self._user_of = {name: user for user in self._users for name in user.names}
        self._connect, self._wanted, self._take = connect, wanted, take
        self._client: Client | None = None
        self._looking: asyncio.Task[None] | None = None
        self._calling: dict[str, asyncio.Task[None]] = {}
        self._members: dict[str, _Member] = {}
        self._joined = asyncio.Event()
        self.heard_at = time.monotonic()
        self.trouble = "the cluster has no worker"

    @property
    def addresses(self) -> list[str]:
        """The addresses of the workers that answer."""
        return sorted(self._members)

    async def join(self, expected: Callable[[], int]) -> None:
        """Connect, and wait for the expected number of workers, which is known once connected."""
        self._looking = asyncio.create_task(self._look())
        while len(self._members) < expected():
            self._joined.clear()
            await self._joined.wait()

    async def leave(self) -> None:
        """Have the workers release all accounts."""
        addresses, self._members = self.addresses, {}
        tasks = [task for task in (self._looking, *self._calling.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEASE_SECONDS)  # the engine may be slow to give up
        if addresses and self._client is not None:
            with contextlib.suppress(Exception):  # without its lease, a worker stops by itself
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._client.run(
                        worker.leave, self._fleet, workers=addresses, on_error="ignore"
                    )

    # -- ownership --------------------------------------------------------------------------

    def plan(self) -> None:
        """Choose an owner for each user, and the accounts of each worker."""
        if not self._members:
            return
        wanted = self._wanted()
        owned: dict[str, dict[str, Work]] = {address: {} for address in self._members}
        chosen = _chosen(tuple(self.addresses), self._keys)
        for user, address in zip(self._users, chosen, strict=True):
            if user.owner is not None and self._members.get(user.owner.address) is not user.owner:
                lost = user.owner.heard_at + LEASE_SECONDS + WINDOW_SECONDS
                user.owner, user.free_at = None, max(user.free_at, lost)
            if user.owner is None:
                user.owner = self._members[address]
            if user.owner.address == address:  # else the present owner must release the user first
                for name in user.names:
                    owned[address][name] = Work(user.free_at, *wanted.get(name, (0, None)))
        for address, member in self._members.items():
            if owned[address] != member.owned:
                member.owned = owned[address]
                member.changed.set()

    def _confirm(self, member: _Member, owned: dict[str, Work], report: Report) -> None:
        """Note that the worker owns only these accounts."""
        now, moved = time.monotonic(), False
        for user in self._users:
            if user.owner is member and user.names[0] not in owned:
                wait = max(report.pending.get(name, 0.0) for name in user.names)
                user.owner, user.free_at, moved = None, max(user.free_at, now + wait), True
        if moved:
            self.plan()

    # -- calls to the workers ---------------------------------------------------------------

    async def _look(self) -> None:
        """Keep the list of workers current."""
        while True:
            with self._noting_trouble():
                if self._client is None or self._client.status == "closed":
                    self._client = await self._connect()
                async with asyncio.timeout(_LATE_SECONDS):
                    addresses = set(await self._client.nthreads())
                # Checked after an answer: if this process was busy, it has also read the reports.
                silent = time.monotonic() - _SILENT_SECONDS
                for address, call in self._calling.items():
                    member = self._members.get(address)
                    if address not in addresses or (member and member.heard_at < silent):
                        call.cancel()
                for address in addresses - self._calling.keys():
                    self._calling[address] = asyncio.create_task(self._call(address))
            await asyncio.sleep(_LOOK_SECONDS)

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Keep the error for messages; the caller tries again."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine may raise anything
            self.trouble = f"{type(error).__name__}: {error}"

    async def _call(self, address: str) -> None:
        """Call a worker again and again; once a call fails, the worker is lost."""
        member = _Member(address)
        try:
            with self._noting_trouble():
                await self._calls(member)
        finally:
            del self._calling[address]
            if self._members.pop(address, None) is not None:
                _logger.info("worker %s is lost", address)
                self.plan()

    async def _calls(self, member: _Member) -> None:
        assert self._client is not None
        receipt, confirmed = "", None
        while True:
            member.changed.clear()
            owned = member.owned
            assignment = replace(
                self._template,
                receipt=receipt,
                sent_at=time.monotonic(),
                owned=None if owned is confirmed else owned,
            )
            arguments = (worker.report, self._fleet, assignment)
            reports = await self._client.run(*arguments, workers=[member.address])
            report: Report | None = reports[member.address]
            if report is None:
                return
            member.heard_at = self.heard_at = time.monotonic()
            for name, reading, data in report.balances:
                if self._user_of[name].owner is member:
                    self._take(name, reading, unpacked(data))
            if not receipt:
                self._join(member)
            if owned is not confirmed:
                self._confirm(member, owned, report)
            receipt, confirmed = report.receipt, owned
            if report.is_idle:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await member.changed.wait()

    def _join(self, member: _Member) -> None:
        _logger.info("worker %s answers", member.address)
        self._members[member.address] = member
        self._joined.set()
        self.plan()


@lru_cache(maxsize=4)
def _chosen(addresses: tuple[str, ...], users: tuple[str, ...]) -> list[str]:
    """The worker's address for each user, by rendezvous hashing."""
    return [max(addresses, key=lambda address: hash(f"{address} {user}")) for user in users]
