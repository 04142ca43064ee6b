"""What a worker does: it owns accounts, reads them, and keeps the newest of each to be collected.

It signs a request only while it holds a lease, which the application renews with every report that
it collects. A worker that hangs, or that the application has lost, reads nothing when it comes
back: its accounts have another owner by then. ``nonce()``, which ccxt's exchanges call when they
sign, is where the lease is checked; after it there is nothing to wait for but the socket.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import sys
import time
import uuid
from collections.abc import Set
from typing import Any, Final

from ccxt.base.errors import ExchangeError, NetworkError
from distributed import Worker, WorkerPlugin

from sunx_adapter.exchange.redaction import cleaned
from sunx_adapter.exchange.retry import backoff
from sunx_adapter.fleet.accounts import with_uids
from sunx_adapter.fleet.messages import (
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Assignment,
    Released,
    Report,
    Request,
    packed,
)
from sunx_adapter.host import AsyncExchange, ExchangeHost
from sunx_adapter.keys import KEYS_FILE_VARIABLE, Account, KeysError, accounts_from_environment

CONCURRENCY: Final = 64
"""So many accounts are read at the same time; those that take longer than a second come on top."""

_SLOW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 3.0
_REPORT_SECONDS: Final = 0.05
_SILENCE_SECONDS: Final = 0.25
_LARGEST_REPORT: Final = 1000
_FORGET_SECONDS: Final = 60.0
_PLUGIN: Final = "sunx-adapter-fleet"


Task = tuple[int, float]
"""The number of a request for one read; or 0, and the seconds between two reads if polled."""


class LeaseEndedError(NetworkError):  # type: ignore[misc]
    """This worker may not read the account now."""


class Owned:
    """One account that this worker owns."""

    def __init__(self, share: "Share", name: str, wait: float) -> None:
        self._share, self._name = share, name
        self._ready_at = time.monotonic() + wait
        self._signed_at = -WINDOW_SECONDS
        self._released = False
        self._exchange: AsyncExchange | None = None
        self._tasks: dict[Task, asyncio.Task[None]] = {}

    def _may_sign(self) -> bool:
        now = time.monotonic()
        return not self._released and self._ready_at <= now < self._share.lease_until

    async def _permitted(self) -> None:
        """Wait until it may be read."""
        await asyncio.sleep(self._ready_at - time.monotonic())
        while not self._may_sign():
            await self._share.renewed.wait()

    async def _opened(self) -> AsyncExchange:
        """The exchange, made when it is needed first, one a turn of the event loop."""
        async with self._share.making:
            if self._exchange is None:
                made = await self._share.make(self._name)
                nonce = made.nonce

                def leased_nonce() -> Any:
                    if not self._may_sign():
                        raise LeaseEndedError("the account has another owner, or soon may have")
                    self._signed_at = time.monotonic()
                    return nonce()

                made.nonce = leased_nonce  # type: ignore[attr-defined]
                self._exchange = made
            return self._exchange

    async def _read(self) -> Any:
        while True:
            await self._permitted()
            try:
                return await (await self._opened()).fetch_balance()
            except LeaseEndedError:
                continue
            except Exception as error:  # noqa: BLE001 - it is what the application gets
                return self._share.told(self._name, error)

    async def read_once(self, number: int) -> None:
        """Read it for a request; an account that is slow gives its place to another."""
        places, loop = self._share.places, asyncio.get_running_loop()
        await places.acquire()
        slow = loop.call_later(_SLOW_SECONDS, places.release)
        try:
            self._share.publish(number, self._name, await self._read())
        finally:
            if slow.when() > loop.time():
                slow.cancel()
                places.release()
        if self._share.is_crowded and len(self._tasks) == 1:
            await self._close()

    async def watch(self, every: float) -> None:
        """Publish its balance whenever there is a new one; with ``every``, read so often."""
        if every:
            await self._poll(every)
        failures = 0
        while True:
            await self._permitted()
            try:
                exchange = await self._opened()
                if not exchange.has.get("watchBalance"):
                    await self._poll(_POLL_SECONDS)
                async for balance in exchange.watch_balances():
                    failures = 0
                    self._share.publish(0, self._name, balance)
            except LeaseEndedError:
                continue
            except Exception as error:  # noqa: BLE001 - it is what the application gets
                failures += 1
                self._share.publish(0, self._name, self._share.told(self._name, error))
                await asyncio.sleep(backoff(failures))

    async def _poll(self, every: float) -> None:
        turn = time.monotonic()
        phase = random.uniform(0, every)  # noqa: S311 - so that accounts do not come all at once
        while True:
            self._share.publish(0, self._name, await self._read())
            turn = max(turn + every, time.monotonic() + phase)
            phase = 0.0
            await asyncio.sleep(turn - time.monotonic())

    def do(self, wanted: Set[Task]) -> None:
        """Have these tasks and no others."""
        for task in self._tasks.keys() - wanted:
            self._tasks.pop(task).cancel()
        for number, every in wanted - self._tasks.keys():
            work = self.read_once(number) if number else self.watch(every)
            self._tasks[number, every] = asyncio.ensure_future(work)

    def release(self) -> float:
        """Read no more; returns the moment at which the last read is out of the window."""
        self._released = True
        self.do(set())
        return max(self._signed_at + WINDOW_SECONDS, self._ready_at)

    async def _close(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            with contextlib.suppress(Exception):  # nothing is asked of it any more
                await exchange.close()

    async def close(self) -> None:
        """Close what is open, once released."""
        await self._close()


class Share:
    """What one fleet has on this worker."""

    def __init__(self) -> None:
        self.worker = uuid.uuid4().hex
        self.lease_until = 0.0
        self.renewed = asyncio.Event()
        self.making = asyncio.Lock()
        self.places = asyncio.Semaphore(CONCURRENCY)
        self._host = ExchangeHost()
        self._accounts: dict[str, Account] = {}
        self._unreadable: KeysError | None = None
        self._keys: asyncio.Future[None] | None = None
        self._assignment = Assignment(0, "", float, {})
        self._owned: dict[str, Owned] = {}
        self._free_at: dict[str, float] = {}
        self._news: dict[tuple[int, str], tuple[int, Any]] = {}
        self._number = 0
        self._arrived = asyncio.Event()
        self._reported_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    # -- for its accounts -------------------------------------------------------------------

    @property
    def is_crowded(self) -> bool:
        """Whether there are too many accounts to keep a connection for each."""
        return len(self._owned) > 0.8 * _descriptors()

    async def make(self, name: str) -> AsyncExchange:
        """The account's exchange."""
        if self._keys is not None:
            await asyncio.shield(self._keys)
        if self._unreadable is not None:
            raise KeysError(str(self._unreadable))
        if name not in self._accounts:
            raise KeysError(f"this worker has no keys for {name!r}")
        account = self._accounts[name]
        config = {**account.config, "number": self._assignment.number}
        exchange = self._host.create(account.exchange, config, asynchronous=True)
        await asyncio.sleep(0)
        return exchange

    def told(self, name: str, error: Exception) -> Any:
        """The error without secrets, which exchanges of others may quote."""
        config = self._accounts[name].config if name in self._accounts else {}
        secrets = [config.get("secret"), config.get("privateKey"), config.get("password")]
        text = cleaned(str(error), api_key=config.get("apiKey"), secrets=secrets)
        with contextlib.suppress(Exception):  # a class of others that is made otherwise
            return type(error)(text)
        return ExchangeError(f"{type(error).__name__}: {text}")

    def publish(self, number: int, name: str, value: Any) -> None:
        """Keep the newest of an account for the next report."""
        self._number += 1
        self._news.pop((number, name), None)
        self._news[number, name] = self._number, value
        self._arrived.set()

    # -- for the application ----------------------------------------------------------------

    def assign(self, assignment: Assignment) -> Released:
        """Own these accounts from now on; an older assignment is ignored."""
        is_meant = assignment.worker == self.worker
        if is_meant and assignment.generation > self._assignment.generation:
            self._assignment = assignment
            if self._keys is None or (
                self._keys.done() and assignment.owned.keys() - self._accounts.keys()
            ):
                self._keys = asyncio.ensure_future(
                    asyncio.to_thread(self._read_keys, assignment.file)
                )
            for name in self._owned.keys() - assignment.owned.keys():
                gone = self._owned.pop(name)
                self._free_at[name] = max(gone.release(), self._free_at.get(name, 0.0))
                self._closing.add(task := asyncio.ensure_future(gone.close()))
                task.add_done_callback(self._closing.discard)
            for name, wait in assignment.owned.items():
                if name not in self._owned:
                    self._owned[name] = Owned(self, name, wait)
            self._begin(assignment)
        now = time.monotonic()
        self._free_at = {name: moment for name, moment in self._free_at.items() if moment > now}
        return Released(self.worker, {name: at - now for name, at in self._free_at.items()})

    def _begin(self, assignment: Assignment) -> None:
        wanted: dict[str, set[Task]] = {name: set() for name in self._owned}
        for name, every in assignment.watched.items():
            wanted[name].add((0, every))
        for number, names in assignment.reads.items():
            for name in names:
                wanted[name].add((number, 0.0))
        for name, owned in self._owned.items():
            owned.do(wanted[name])
        numbers = {name: {number for number, _ in tasks} for name, tasks in wanted.items()}
        self._news = {
            (number, name): news
            for (number, name), news in self._news.items()
            if number in numbers.get(name, ())
        }

    def _read_keys(self, file: str) -> None:
        try:
            self._accounts = with_uids(
                accounts_from_environment({KEYS_FILE_VARIABLE: file, **os.environ})
            )
            self._unreadable = None
        except KeysError as error:
            self._unreadable = error

    async def collect(self, request: Request) -> Report:
        """What is new, as soon as there is something, and soon in any case."""
        mine = request.worker == self.worker
        if mine and request.generation == self._assignment.generation:
            self.lease_until = max(self.lease_until, request.stamp + LEASE_SECONDS)
            self.renewed.set()
            self.renewed = asyncio.Event()
        if mine:
            known = itertools.takewhile(
                lambda news: news[1][0] <= request.taken, self._news.items()
            )
            for key, _ in list(known):
                del self._news[key]
        if not self._news:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), _SILENCE_SECONDS)
        await asyncio.sleep(self._reported_at + _REPORT_SECONDS - time.monotonic())
        self._reported_at = time.monotonic()
        told = list(self._news.items())[:_LARGEST_REPORT]
        return Report(
            worker=self.worker,
            generation=self._assignment.generation,
            stamp=time.monotonic(),
            last=told[-1][1][0] if told else 0,
            news=[(number, name, packed(value)) for (number, name), (_, value) in told],
        )

    def is_forgotten(self) -> bool:
        """Whether the application has been gone for long."""
        return time.monotonic() > max(self.lease_until, self._reported_at) + _FORGET_SECONDS

    async def close(self) -> None:
        """Let everything go."""
        self.assign(Assignment(sys.maxsize, "", float, {}, worker=self.worker))
        await asyncio.gather(*self._closing, return_exceptions=True)


class FleetPlugin(WorkerPlugin):
    """What all fleets have on this worker, by a number of their own."""

    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}
        self._forgetting: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Begin."""
        _allow_descriptors()
        logging.getLogger("distributed.worker").addFilter(_is_not_ours)
        self._forgetting = asyncio.ensure_future(self._forget())

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Let everything go."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        shares, self.shares = self.shares, {}
        for share in shares.values():
            await share.close()

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_SECONDS / 4)
            for number in [each for each, share in self.shares.items() if share.is_forgotten()]:
                await self.shares.pop(number).close()


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Not the engine's line about each call of :func:`collect`, of which there are many."""
    return not record.getMessage().startswith(f"Run out-of-band function {collect.__name__!r}")


async def _share(worker: Worker, fleet: str) -> Share:
    plugin = worker.plugins.get(_PLUGIN)
    if plugin is None:
        plugin = FleetPlugin()
        await worker.plugin_add(plugin=plugin, name=_PLUGIN)
    assert isinstance(plugin, FleetPlugin)
    if fleet not in plugin.shares:
        plugin.shares[fleet] = Share()
    return plugin.shares[fleet]


async def assign(fleet: str, assignment: Assignment, dask_worker: Worker) -> Released:
    """:meth:`Share.assign` on the worker that runs it."""
    return (await _share(dask_worker, fleet)).assign(assignment)


async def collect(fleet: str, request: Request, dask_worker: Worker) -> Report:
    """:meth:`Share.collect` on the worker that runs it."""
    return await (await _share(dask_worker, fleet)).collect(request)


async def leave(fleet: str, dask_worker: Worker) -> None:
    """The application has ended."""
    plugin = dask_worker.plugins.get(_PLUGIN)
    if isinstance(plugin, FleetPlugin) and fleet in plugin.shares:
        await plugin.shares.pop(fleet).close()


def _descriptors() -> float:
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return float("inf")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _allow_descriptors() -> None:
    """As many open files as this process may have: an account may need two."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on every system

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
