"""The worker's side: it owns accounts, reads them, and reports the newest balance of each.

A worker signs a request only while it holds a lease. Every report that the application receives
renews the lease. So a worker that hung, or that the application lost, reads nothing when it
resumes: its accounts may have another owner by then. The lease is checked in ``nonce()``, which
every ccxt exchange calls when it signs, and in ``before_write()``, which only ours call.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from typing import Any, Final

from ccxt.base.errors import ExchangeClosedByUser, ExchangeError, NetworkError
from distributed import Worker, WorkerPlugin

from sunx_adapter.exchange.redaction import cleaned
from sunx_adapter.exchange.retry import backoff
from sunx_adapter.fleet.accounts import with_uids
from sunx_adapter.fleet.messages import (
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Assignment,
    Report,
    Work,
    packed,
)
from sunx_adapter.host import AsyncExchange, ExchangeHost
from sunx_adapter.keys import KEYS_FILE_VARIABLE, Account, KeysError, accounts_from_environment
from sunx_adapter.venue import VENUES

CONCURRENCY: Final = 64
"""How many accounts are read at the same time, not counting those that take over a second."""

_SLOW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 3.0
_ABANDONED_SECONDS: Final = 60.0
_KEYS_SECONDS: Final = 1.0
_LARGEST_REPORT: Final = 1000
_REPORT_SECONDS: Final = 0.05
_LONGEST_REPORT_SECONDS: Final = 0.25
"""The shortest time between two reports, and the longest that a report waits for balances."""

_DESCRIPTION: Final = (
    "api", "exceptions", "features", "fees", "has", "httpExceptions", "limits",
    "requiredCredentials",
)  # fmt: skip
"""What ccxt copies into each exchange, 15 KiB in all; equal copies are shared."""


class LeaseEndedError(NetworkError):  # type: ignore[misc]
    """This worker may not read the account now."""


class OwnedAccount:
    """One account that this worker owns. Its exchange is made when it is needed.

    Attributes:
        ready_at: when the account may be read, on :func:`time.monotonic`'s clock.
        signed_at: when its last request was signed, or was about to be written.
        reading: see ``Work``.
        read_for: the newest reading for which a read was started.
    """

    def __init__(self, fleet: "FleetPlugin", name: str) -> None:
        self._fleet, self.name = fleet, name
        self.ready_at = 0.0
        self.signed_at = float("-inf")
        self.reading = self.read_for = 0
        self._released = False
        self._exchange: AsyncExchange | None = None
        self._reads = 0
        self._every: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def read(self) -> Any:
        """Read the account; returns the balance or the exception, ``None`` once it was released."""
        self._reads += 1
        try:
            while not self._released:
                try:
                    exchange = await self._opened()
                    await self._wait_until_allowed()
                    return await exchange.fetch_balance()
                except (LeaseEndedError, ExchangeClosedByUser):
                    continue
                except Exception as error:  # noqa: BLE001 - the application gets it
                    return self._fleet.redacted(self.name, error)
        finally:
            self._reads -= 1
            is_kept = self._watching is not None or not self._fleet.is_crowded
            if not self._reads and (self._released or not is_kept):
                await self.close()

    def watch(self, every: float | None) -> None:
        """Start or stop watching; ``every`` as in ``Work``."""
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

    async def _wait_until_allowed(self) -> None:
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
                exchange = await self._fleet.make(self.name)
                for name in ("nonce", "before_write"):
                    if (step := getattr(exchange, name, None)) is not None:
                        setattr(exchange, name, self._leased(step))
                self._exchange = exchange
            return self._exchange

    def _leased(self, step: Callable[[], Any]) -> Callable[[], Any]:
        def leased() -> Any:
            if not self._may_sign():
                raise LeaseEndedError("the account has another owner, or soon may have")
            self.signed_at = time.monotonic()
            return step()

        return leased

    async def _watch(self, every: float) -> None:
        failures = 0
        while not self._released:
            try:
                exchange = await self._opened()
                await self._wait_until_allowed()
                if every or not exchange.has.get("watchBalance"):
                    await self._poll(every or _POLL_SECONDS)
                try:
                    async for balance in exchange.watch_balances():
                        failures = 0
                        self._fleet.publish(self, 0, balance)
                except asyncio.CancelledError:
                    await self.close()  # else its push connection would go on
                    raise
            except (LeaseEndedError, ExchangeClosedByUser):
                continue
            except Exception as error:  # noqa: BLE001 - the application gets it
                failures += 1
                self._fleet.publish(self, 0, self._fleet.redacted(self.name, error))
                await asyncio.sleep(backoff(failures))

    async def _poll(self, every: float) -> None:
        due = time.monotonic()
        phase = random.uniform(0, every)  # noqa: S311 - spreads the accounts over the interval
        while True:
            self._fleet.publish(self, 0, await self.read())
            due = max(due + every, time.monotonic() + phase)
            phase = 0.0
            await asyncio.sleep(due - time.monotonic())


class FleetPlugin(WorkerPlugin):
    """The accounts of one fleet on this worker.

    Args:
        fleet: the fleet's id: a cluster may serve several.

    Attributes:
        is_crowded: whether there are too many accounts to keep a connection for each.
        lease_until: when the lease ends.
        renewed: set when the lease is renewed, and then replaced.
        making: held while an exchange is made.
    """

    def __init__(self, fleet: str) -> None:
        self.name = fleet
        self.is_crowded = False
        self.lease_until = 0.0
        self.renewed = asyncio.Event()
        self.making = asyncio.Lock()
        self._worker: Worker
        self._file_limit = float("inf")
        self._host = ExchangeHost()
        self._descriptions: dict[tuple[str, str], Any] = {}
        self._assignment: Assignment
        self._accounts: dict[str, Account] = {}
        self._keys: asyncio.Task[dict[str, Account]] | None = None
        self._keys_read_at = 0.0
        self._owned: dict[str, OwnedAccount] = {}
        self._watches = False
        self._queue: deque[OwnedAccount] = deque()
        self._readers: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[Any]] = set()
        self._new: dict[tuple[str, int], Any] = {}
        self._news = asyncio.Event()
        self._receipt = ""
        self._reported_at = 0.0
        self._ending: asyncio.TimerHandle | None = None

    # -- for the engine ---------------------------------------------------------------------

    def setup(self, worker: Worker) -> None:
        """Called at the start."""
        self._worker, self._file_limit = worker, _prepare_process()

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Called at the end."""
        if self._ending is not None:
            self._ending.cancel()
        self._receipt = ""  # a call under way reports nothing
        self._own({}, 0.0)
        for task in self._reading:
            task.cancel()
        own = {asyncio.current_task()}
        await asyncio.gather(*self._reading, *(self._closing - own), return_exceptions=True)

    # -- for the application ----------------------------------------------------------------

    async def report(self, assignment: Assignment) -> Report | None:
        """Own the assigned accounts, wait a short time for new balances, and report them.

        Returns:
            The report; ``None`` if the assignment does not repeat the newest receipt.
        """
        if not assignment.receipt:  # the first one, without accounts
            self._new.clear()
        elif assignment.receipt != self._receipt:
            return None
        else:
            self.lease_until = self._reported_at + LEASE_SECONDS
        self._assignment = assignment
        self._receipt = receipt = uuid.uuid4().hex
        pending = {}
        if assignment.owned is not None:
            pending = self._own(assignment.owned, assignment.sent_at)
        self.renewed.set()
        self.renewed = asyncio.Event()
        if not self._is_idle():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_REPORT_SECONDS):
                    await self._news.wait()
            await asyncio.sleep(self._reported_at + _REPORT_SECONDS - time.monotonic())
        if receipt != self._receipt:
            return None
        keys = list(self._new)[:_LARGEST_REPORT]
        balances = [(*key, packed(self._new.pop(key))) for key in keys]
        if not self._new:
            self._news.clear()
        self._reported_at = time.monotonic()
        self._end_later()
        return Report(receipt, balances, pending, is_idle=self._is_idle())

    def _is_idle(self) -> bool:
        return not (self._watches or self._reading)

    def _own(self, owned: Mapping[str, Work], sent_at: float) -> dict[str, float]:
        """Own these accounts only; returns ``pending`` as in ``Report``."""
        now = time.monotonic()
        released = [self._owned.pop(name) for name in self._owned.keys() - owned.keys()]
        for account in released:
            account.release()
            _start(account.close(), self._closing)
        if owned.keys() - self._accounts.keys():
            self._keys = None  # read the keys again
        for name, work in owned.items():
            account = self._owned[name] = self._owned.get(name) or OwnedAccount(self, name)
            account.ready_at = now + work.ready_at - sent_at
            account.watch(work.every)
            account.reading = work.reading
            if account.reading > account.read_for:
                self._queue.append(account)
        self.is_crowded = len(owned) > 0.8 * self._file_limit
        self._watches = any(work.every is not None for work in owned.values())
        self._start_readers()
        ends = {account.name: account.signed_at + WINDOW_SECONDS for account in released}
        return {name: end - now for name, end in ends.items() if end > now}

    def _end_later(self) -> None:
        """End if the application does not call for a long time."""
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(
            _ABANDONED_SECONDS,
            lambda: _start(self._worker.plugin_remove(name=self.name), self._closing),
        )

    # -- for its accounts -------------------------------------------------------------------

    async def make(self, name: str) -> AsyncExchange:
        """The account's exchange."""
        if self._keys is None:
            keys = asyncio.to_thread(_accounts_with_keys, self._assignment.file)
            self._keys, self._keys_read_at = asyncio.create_task(keys), time.monotonic()
        try:
            self._accounts = await asyncio.shield(self._keys)
            if name not in self._accounts:
                raise KeysError(f"this worker has no keys for {name!r}")
        except KeysError:
            if time.monotonic() > self._keys_read_at + _KEYS_SECONDS:
                self._keys = None  # read them again: the file may be fixed by then
            raise
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
        """The error without secrets: exchanges of other packages may quote them."""
        config = self._accounts[name].config if name in self._accounts else {}
        secrets = [config.get("secret"), config.get("privateKey"), config.get("password")]
        text = cleaned(str(error), api_key=config.get("apiKey"), secrets=secrets)
        with contextlib.suppress(Exception):  # the class may need other arguments
            return type(error)(text)
        return ExchangeError(f"{type(error).__name__}: {text}")

    def publish(self, account: OwnedAccount, reading: int, value: Any) -> None:
        """Keep the newest balance of an account for the next report."""
        if self._owned.get(account.name) is account:
            self._new[account.name, reading] = value
            if not reading:
                self._news.set()

    # -- one-time reads ---------------------------------------------------------------------

    def _start_readers(self) -> None:
        for _ in range(min(CONCURRENCY - len(self._readers), len(self._queue))):
            self._readers.add(_start(self._read_queued(), self._reading))

    async def _read_queued(self) -> None:
        """Read queued accounts; if an account is slow, another reader replaces this one."""
        reader = asyncio.current_task()
        assert reader is not None
        while self._queue and reader in self._readers:
            account = self._queue.popleft()
            if account.reading > account.read_for:
                reading = account.read_for = account.reading
                replacing = asyncio.get_running_loop().call_later(
                    _SLOW_SECONDS, self._replace, reader
                )
                balance = await account.read()
                replacing.cancel()
                self.publish(account, reading, balance)
        self._readers.discard(reader)
        if not self._readers:
            self._news.set()  # do not wait for more

    def _replace(self, reader: asyncio.Task[None]) -> None:
        self._readers.discard(reader)
        self._start_readers()


# The engine calls these by name and fills in ``dask_worker``.


async def report(fleet: str, assignment: Assignment, dask_worker: Worker) -> Report | None:
    """:meth:`FleetPlugin.report` on the worker that runs it."""
    if fleet not in dask_worker.plugins:
        await dask_worker.plugin_add(plugin=FleetPlugin(fleet))
    plugin = dask_worker.plugins[fleet]
    assert isinstance(plugin, FleetPlugin)
    return await plugin.report(assignment)


async def leave(fleet: str, dask_worker: Worker) -> None:
    """Release all accounts: the application ends."""
    if fleet in dask_worker.plugins:
        await dask_worker.plugin_remove(name=fleet)


def _is_unrelated(record: logging.LogRecord) -> bool:
    """False for the engine's log line about each call of :func:`report`."""
    return not record.getMessage().startswith(f"Run out-of-band function {report.__name__!r}")


def _accounts_with_keys(file: str) -> dict[str, Account]:
    return with_uids(accounts_from_environment({KEYS_FILE_VARIABLE: file, **os.environ}))


def _start(work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


@cache
def _prepare_process() -> float:
    """Prepare this process for fleets, once; returns how many files may be open."""
    import ccxt.async_support  # noqa: F401, PLC0415 - slow, and needed by every account

    # Modules are half of all objects here: the garbage collector need not check them again.
    gc.collect()
    gc.freeze()
    logging.getLogger("distributed.worker").addFilter(_is_unrelated)
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return float("inf")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # an account may need two files
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return float("inf") if soft == resource.RLIM_INFINITY else soft
