"""The worker's side: it owns accounts, reads them, and reports the newest balance of each.

A worker signs a request only while it holds a lease, which every report that the application
receives renews. A worker that hung, or that the application lost, therefore reads nothing when it
resumes: its accounts have another owner by then. The lease is checked in ``nonce()``, which ccxt's
exchanges call when they sign; between that and writing to the socket, nothing is awaited.
"""

import asyncio
import contextlib
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Coroutine, Set
from typing import Any, Final

from ccxt.base.errors import ExchangeError, NetworkError

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
from sunx_adapter.venue import VENUES

CONCURRENCY: Final = 64
"""How many accounts are read at the same time, not counting those that take over a second."""

_SLOW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 3.0
_LARGEST_REPORT: Final = 1000
_REPORT_SECONDS: Final = 0.05
_READ_REPORT_SECONDS: Final = 0.25
"""The time between two reports, and the same while only one-time reads are under way."""
_DESCRIPTION: Final = (
    "api", "exceptions", "features", "fees", "has", "httpExceptions", "limits",
    "requiredCredentials",
)  # fmt: skip
"""What ccxt copies into each exchange, 15 KiB in all; equal copies are shared."""


class LeaseEndedError(NetworkError):  # type: ignore[misc]
    """This worker may not read the account now."""


class OwnedAccount:
    """One account that this worker owns, with its exchange once it is needed.

    Attributes:
        ready_at: when it may be read, on :func:`time.monotonic`'s clock.
    """

    def __init__(self, fleet: "FleetAccounts", name: str) -> None:
        self._fleet, self._name = fleet, name
        self.ready_at = 0.0
        self._released = False
        self._exchange: AsyncExchange | None = None
        self._reads = 0
        self._every: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def read(self) -> Any:
        """The balance or the exception."""
        self._reads += 1
        try:
            return await self._balance()
        finally:
            self._reads -= 1
            if self._fleet.is_crowded and not self._reads and self._watching is None:
                await self.close()

    async def _balance(self) -> Any:
        while True:
            try:
                await self._permission()
                return await (await self._opened()).fetch_balance()
            except LeaseEndedError as error:
                if self._released:
                    return error
            except Exception as error:  # noqa: BLE001 - the application gets it
                return self._fleet.redacted(self._name, error)

    def watch(self, every: float | None) -> None:
        """Watch it from now on, or no longer; ``every`` as in ``Assignment.watched``."""
        if every != self._every:
            if self._watching is not None:
                self._watching.cancel()
            self._every = every
            self._watching = None if every is None else asyncio.create_task(self._watch(every))

    def release(self) -> None:
        """Sign no further request."""
        self._released = True
        self.watch(None)

    async def close(self) -> None:
        """Close the exchange; a later read makes another one."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            with contextlib.suppress(Exception):  # it is not used any more
                await exchange.close()

    def _may_sign(self) -> bool:
        now = time.monotonic()
        return not self._released and self.ready_at <= now < self._fleet.lease_until

    async def _permission(self) -> None:
        while not self._may_sign():
            if self._released:
                raise LeaseEndedError("the account has another owner")
            delay = self.ready_at - time.monotonic()
            await (asyncio.sleep(delay) if delay > 0 else self._fleet.renewed.wait())

    async def _opened(self) -> AsyncExchange:
        if self._exchange is not None:
            return self._exchange
        async with self._fleet.making:  # one per turn of the event loop: it takes milliseconds
            if self._exchange is None:
                exchange = await self._fleet.make(self._name)
                nonce = exchange.nonce

                def leased_nonce() -> Any:
                    if not self._may_sign():
                        raise LeaseEndedError("the account has another owner, or soon may have")
                    self._fleet.signed_at[self._name] = time.monotonic()
                    return nonce()

                exchange.nonce = leased_nonce  # type: ignore[attr-defined]
                self._exchange = exchange
            return self._exchange

    async def _watch(self, every: float) -> None:
        if every:
            await self._poll(every)
        failures = 0
        while True:
            await self._permission()
            try:
                exchange = await self._opened()
                if not exchange.has.get("watchBalance"):
                    await self._poll(_POLL_SECONDS)
                async for balance in exchange.watch_balances():
                    failures = 0
                    self._fleet.publish(0, self._name, balance)
            except LeaseEndedError:
                continue
            except Exception as error:  # noqa: BLE001 - the application gets it
                failures += 1
                self._fleet.publish(0, self._name, self._fleet.redacted(self._name, error))
                await asyncio.sleep(backoff(failures))

    async def _poll(self, every: float) -> None:
        due = time.monotonic()
        phase = random.uniform(0, every)  # noqa: S311 - spreads the accounts over the interval
        while True:
            self._fleet.publish(0, self._name, await self.read())
            due = max(due + every, time.monotonic() + phase)
            phase = 0.0
            await asyncio.sleep(due - time.monotonic())


class FleetAccounts:
    """The accounts of one fleet on this worker.

    Attributes:
        is_crowded: whether there are too many accounts to keep a connection for each.
        lease_until: when the lease ends.
        renewed: set when the lease is renewed, and then replaced.
        making: held while an exchange is made.
        signed_at: when each account's last request was signed; older than the window if absent.
    """

    def __init__(self) -> None:
        self.is_crowded = False
        self.lease_until = 0.0
        self.renewed = asyncio.Event()
        self.making = asyncio.Lock()
        self.signed_at: dict[str, float] = {}
        self._worker = uuid.uuid4().hex
        self._host = ExchangeHost()
        self._descriptions: dict[tuple[str, str], Any] = {}
        self._accounts: dict[str, Account] = {}
        self._keys_error = ""
        self._keys: asyncio.Task[None] | None = None
        self._assignment = Assignment(0)
        self._owned: dict[str, OwnedAccount] = {}
        self._reads: dict[int, set[str]] = {}
        self._queue: deque[tuple[int, str]] = deque()
        self._readers = 0
        self._reading: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._new: dict[tuple[int, str], Any] = {}
        self._reported: dict[tuple[int, str], Any] = {}
        self._report = 0
        self._reported_at = time.monotonic()
        self._arrived = asyncio.Event()
        self._all_read = asyncio.Event()

    # -- for the application ----------------------------------------------------------------

    def assign(self, assignment: Assignment) -> Released:
        """Own these accounts from now on; an older assignment is ignored."""
        now = time.monotonic()
        is_newer = assignment.generation > self._assignment.generation
        if is_newer and assignment.worker == self._worker:
            self._assignment = assignment
            if self._keys is None or (
                self._keys.done() and assignment.owned.keys() - self._accounts.keys()
            ):
                self._keys = asyncio.create_task(self._load_keys(assignment.file))
            self._release(self._owned.keys() - assignment.owned.keys())
            for name, wait in assignment.owned.items():
                account = self._owned.get(name) or OwnedAccount(self, name)
                # One that it owns may have had other owners, if the application had lost it.
                account.ready_at = max(account.ready_at, now + wait)
                account.watch(assignment.watched.get(name))
                self._owned[name] = account
            self.is_crowded = len(self._owned) > 0.8 * _file_limit()
            self._read_once(assignment)
            self._wake()
        ends = {name: moment + WINDOW_SECONDS for name, moment in self.signed_at.items()}
        self.signed_at = {n: at for n, at in self.signed_at.items() if ends[n] > now}
        pending = self.signed_at.keys() - self._owned.keys()
        return Released(self._worker, {name: ends[name] - now for name in pending})

    async def collect(self, request: Request) -> Report:
        """The new balances; waits for some, but not for long, so that the lease is renewed."""
        if not request.worker:  # the application gave up on this worker, or never met it
            self._release(set(self._owned))
            self._reads, self._new, self._reported = {}, {}, {}
            self._queue.clear()
        if request.worker == self._worker and request.received == self._report:
            self._reported = {}
            if request.generation == self._assignment.generation:
                self.lease_until = self._reported_at + LEASE_SECONDS
                self._wake()
        if not (self._new or self._reported):
            self._arrived.clear()
            await _wait_for(self._arrived, _READ_REPORT_SECONDS)
        interval = _REPORT_SECONDS if self._assignment.watched else _READ_REPORT_SECONDS
        await _wait_for(self._all_read, self._reported_at + interval - time.monotonic())
        self._all_read.clear()
        # Balances of a report that was not received are reported again, unless there are newer.
        self._new = self._reported | self._new
        self._reported = {key: self._new.pop(key) for key in list(self._new)[:_LARGEST_REPORT]}
        self._report += 1
        self._reported_at = time.monotonic()
        balances = [(number, name, packed(v)) for (number, name), v in self._reported.items()]
        return Report(self._worker, self._report, balances)

    def _release(self, names: Set[str]) -> None:
        for name in names:
            account = self._owned.pop(name)
            account.release()
            _start(account.close(), self._closing)

    def silence(self) -> float:
        """Seconds since the last report."""
        return time.monotonic() - self._reported_at

    async def close(self) -> None:
        """Release all accounts."""
        self._release(set(self._owned))
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, *self._closing, return_exceptions=True)

    # -- for its accounts -------------------------------------------------------------------

    async def make(self, name: str) -> AsyncExchange:
        """The account's exchange."""
        if self._keys is not None:
            await asyncio.shield(self._keys)
        if self._keys_error:
            raise KeysError(self._keys_error)
        if name not in self._accounts:
            raise KeysError(f"this worker has no keys for {name!r}")
        account = self._accounts[name]
        config = {**account.config, "number": self._assignment.number}
        exchange = self._host.create(account.exchange, config, asynchronous=True)
        for attribute in _DESCRIPTION if account.exchange in VENUES else ():
            value = getattr(exchange, attribute)
            shared = self._descriptions.setdefault((account.exchange, attribute), value)
            if shared == value:
                setattr(exchange, attribute, shared)
        await asyncio.sleep(0)
        return exchange

    def redacted(self, name: str, error: Exception) -> Any:
        """The error without secrets, which exchanges of other packages may quote."""
        config = self._accounts[name].config if name in self._accounts else {}
        secrets = [config.get("secret"), config.get("privateKey"), config.get("password")]
        text = cleaned(str(error), api_key=config.get("apiKey"), secrets=secrets)
        with contextlib.suppress(Exception):  # the class may need other arguments
            return type(error)(text)
        return ExchangeError(f"{type(error).__name__}: {text}")

    def publish(self, number: int, name: str, value: Any) -> None:
        """Keep the newest of an account for the next report."""
        self._new[number, name] = value
        self._arrived.set()

    # -- one-time reads ---------------------------------------------------------------------

    def _read_once(self, assignment: Assignment) -> None:
        known, self._reads = self._reads, {n: set(names) for n, names in assignment.reads.items()}
        for number, names in assignment.reads.items():
            started = known.get(number, set())
            self._queue += [(number, name) for name in names if name not in started]
        for _ in range(min(CONCURRENCY - self._readers, len(self._queue))):
            self._readers += 1
            _start(self._read_queued(), self._reading)

    async def _read_queued(self) -> None:
        """Read queued accounts; if one is slow, another task takes this one's place."""
        loop, replaced = asyncio.get_running_loop(), False

        def replace() -> None:
            nonlocal replaced
            replaced = True
            _start(self._read_queued(), self._reading)

        while self._queue and not replaced:
            number, name = self._queue.popleft()
            account = self._owned.get(name)
            if account is not None and name in self._reads.get(number, ()):
                timer = loop.call_later(_SLOW_SECONDS, replace)
                balance = await account.read()
                timer.cancel()
                if self._owned.get(name) is account:
                    self.publish(number, name, balance)
        if not replaced:
            self._readers -= 1
        if not self._readers:
            self._all_read.set()

    async def _load_keys(self, file: str) -> None:
        environ = {KEYS_FILE_VARIABLE: file, **os.environ}
        try:
            accounts = await asyncio.to_thread(accounts_from_environment, environ)
        except KeysError as error:
            self._keys_error = str(error)
        else:
            self._accounts, self._keys_error = with_uids(accounts), ""

    def _wake(self) -> None:
        self.renewed.set()
        self.renewed = asyncio.Event()


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _file_limit() -> float:
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return float("inf")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft
