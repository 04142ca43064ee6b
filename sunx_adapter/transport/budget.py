"""The read budget: at most so many requests in any window, shared by all who read for one user.

The moving window is kept by the package ``limits``, in memory or in any of its storages. Its own
memory and Redis storages go by the wall clock of this machine, which may jump and which no other
machine shares; the two below go by a clock that serves.
"""

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import limits
from ccxt.base.errors import NetworkError, NotSupported, RateLimitExceeded
from limits.errors import ConfigurationError
from limits.storage import MemoryStorage, RedisStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

from sunx_adapter.venue import READ_LIMIT

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the budget."""

SLACK_SECONDS: Final = 0.2
"""The window is longer by this: requests may be so much longer under way than their neighbours."""

_STORAGE_SECONDS: Final = 2.0
_UNREACHABLE_SECONDS: Final = 5.0
_SHORTEST_WAIT: Final = 0.001


class _ProcessStorage(MemoryStorage):
    """A window in this process, by a clock that never jumps."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def acquire_entry(self, key: str, limit: int, expiry: float, amount: int = 1) -> bool:
        with self._lock:
            taken, now = self._current(key, expiry)
            if len(taken) + amount > limit:
                return False
            taken.extend([now] * amount)
            return True

    def get_moving_window(self, key: str, limit: int, expiry: float) -> tuple[float, int]:  # noqa: ARG002
        with self._lock:
            taken, now = self._current(key, expiry)
            age = now - taken[0] if taken else 0.0
            return time.time() - age, len(taken)

    def _current(self, key: str, expiry: float) -> tuple[deque[float], float]:
        taken = self._taken.setdefault(key, deque())
        now = time.monotonic()
        while taken and taken[0] <= now - expiry:
            taken.popleft()
        return taken, now


class _SharedStorage(RedisStorage):
    """A window in Redis, by the clock of Redis: machines need not agree on the time."""

    _NOW: ClassVar = """
        local time = redis.call('TIME')
        local now = time[1] + time[2] / 1000000
        local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
    """
    _ACQUIRE: ClassVar = (
        _NOW
        + """
        local amount = tonumber(ARGV[3])
        local oldest = redis.call('LINDEX', KEYS[1], limit - amount)
        if amount > limit or (oldest and tonumber(oldest) > now - window) then return 0 end
        for _ = 1, amount do redis.call('LPUSH', KEYS[1], string.format('%.6f', now)) end
        redis.call('LTRIM', KEYS[1], 0, 511)
        redis.call('PEXPIRE', KEYS[1], math.ceil(window * 1000))
        return 1
    """
    )
    _WINDOW: ClassVar = (
        _NOW
        + """
        local count, age = 0, 0
        for _, entry in ipairs(redis.call('LRANGE', KEYS[1], 0, limit - 1)) do
            if tonumber(entry) <= now - window then break end
            count, age = count + 1, now - tonumber(entry)
        end
        return {count, string.format('%.6f', age)}
    """
    )

    def initialize_storage(self, _uri: str) -> None:
        super().initialize_storage(_uri)
        self._acquire = self.storage.register_script(self._ACQUIRE)
        self._window = self.storage.register_script(self._WINDOW)

    def acquire_entry(self, key: str, limit: int, expiry: float, amount: int = 1) -> bool:
        return bool(self._acquire([self.prefixed_key(key)], [limit, expiry, amount]))

    def get_moving_window(self, key: str, limit: int, expiry: float) -> tuple[float, int]:
        count, age = self._window([self.prefixed_key(key)], [limit, expiry])
        return time.time() - float(age), int(count)


class _Window(limits.RateLimitItemPerSecond):
    """``amount`` reads in the venue's seconds and a little more."""

    __slots__ = ("_seconds",)

    def __init__(self, amount: int, seconds: float) -> None:
        super().__init__(amount, math.ceil(seconds), namespace="sunx-adapter")
        self._seconds = seconds

    def get_expiry(self) -> float:  # type: ignore[override]
        return self._seconds

    def key_for(self, *identifiers: Any) -> str:
        # Without the amount: an exchange that keeps to less still uses the same budget.
        return "/".join([self.namespace, *identifiers, f"{self._seconds:g}s"])


@cache
def _limiter(storage_uri: str) -> MovingWindowRateLimiter:
    """One per storage and process: exchanges of one user share their budget."""
    try:
        if storage_uri == MEMORY:
            return MovingWindowRateLimiter(_ProcessStorage())
        if storage_uri.startswith(("redis://", "rediss://", "redis+unix://", "unix://")):
            seconds: dict[str, Any] = dict.fromkeys(
                ("socket_timeout", "socket_connect_timeout"), _STORAGE_SECONDS
            )
            return MovingWindowRateLimiter(_SharedStorage(storage_uri, **seconds))
        return MovingWindowRateLimiter(storage_from_string(storage_uri))
    except (ConfigurationError, NotImplementedError, ValueError) as error:
        reason = str(error)
    raise NotSupported(
        f"options['rateLimitStorage'] cannot be used: {reason}. Use memory:// or, with the extra "
        "sunx-adapter[redis], redis://host:port/db"
    )


class _Queue:
    """First come, first served, among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self.busy = False

    def enter(self, deadline: float) -> bool:
        """Wait for one's turn; false if it does not come before the deadline."""
        with self._lock:
            if not self.busy:
                self.busy = True
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(max(deadline - time.monotonic(), 0)):
            return True
        with self._lock:
            if turn.is_set():  # it came just now
                return True
            self._waiting.remove(turn)
        return False

    def leave(self) -> None:
        """Let the next one in."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self.busy = False


class ReadBudget:
    """A moving window of ``requests`` in ``seconds``; whoever comes first is served first.

    Args:
        storage_uri: a storage URI of the package ``limits``.
        key: whose budget it is.
        requests: how many reads fit into the window.
        seconds: the window's length.
        slack: seconds that the window is longer.
        fallback: whether to go on with a part of the budget, kept in memory, if the storage
            cannot be reached.
    """

    def __init__(
        self,
        storage_uri: str,
        key: str,
        *,
        requests: int = READ_LIMIT.requests,
        seconds: float = READ_LIMIT.seconds,
        slack: float = SLACK_SECONDS,
        fallback: bool = False,
    ) -> None:
        self._limiter = _limiter(storage_uri)
        self.in_memory = isinstance(self._limiter.storage, _ProcessStorage)
        own = isinstance(self._limiter.storage, _ProcessStorage | _SharedStorage)
        # The other storages of limits count in whole seconds.
        length = seconds + slack if own else math.ceil(seconds + slack)
        self._window = _Window(requests, length)
        self._told = f"{requests} reads in {seconds:g} s"
        self._key = key
        self._fallback = (
            ReadBudget(MEMORY, key, requests=max(requests // FALLBACK_SHARE, 1), seconds=seconds)
            if fallback and not self.in_memory
            else None
        )
        self._unreachable_until = 0.0
        self._threads = _Queue()
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
        self._tasks = WeakKeyDictionary()

    # -- one look at the window -------------------------------------------------------------

    def _attempt(self) -> float:
        """Take one read; 0 if there was one, else how many seconds to wait for the next."""
        if self._fallback is not None and time.monotonic() < self._unreachable_until:
            return self._fallback._attempt()
        try:
            if self._limiter.hit(self._window, self._key):
                return 0.0
            free_at = self._limiter.get_window_stats(self._window, self._key).reset_time
        except self._storage_errors() as error:
            reason = type(error).__name__
        else:
            return max(free_at - time.time(), _SHORTEST_WAIT)
        if self._fallback is None:
            raise NetworkError(
                f"the storage of the read budget (options['rateLimitStorage']) cannot be reached: "
                f"{reason}. Start it, or set options['rateLimitFallback'] = 'memory' to go on "
                "with a quarter of the budget"
            )
        self._unreachable_until = time.monotonic() + _UNREACHABLE_SECONDS
        return self._fallback._attempt()

    def _storage_errors(self) -> tuple[type[Exception], ...]:
        errors = self._limiter.storage.base_exceptions
        return (OSError, *(errors if isinstance(errors, tuple) else (errors,)))

    def _follow(self, remaining: int) -> None:
        try:
            ours = self._limiter.get_window_stats(self._window, self._key).remaining
            if ours > remaining:
                self._limiter.hit(self._window, self._key, cost=ours - remaining)
        except self._storage_errors():
            pass  # the next read will tell

    def _too_late(self) -> RateLimitExceeded:
        return RateLimitExceeded(
            f"the budget of {self._told} is used up, and the timeout ends before the next one; "
            "read less often, or raise timeout"
        )

    # -- waiting ----------------------------------------------------------------------------

    def take(self, deadline: float, pause: threading.Event) -> None:
        """Take one read, waiting for it if need be.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.
            pause: ends the wait when it is set.

        Raises:
            RateLimitExceeded: there is none before the deadline.
            NetworkError: the storage cannot be reached.
        """
        if not self._threads.busy and not self._attempt():
            return
        if not self._threads.enter(deadline):
            raise self._too_late()
        try:
            while wait := self._attempt():
                if time.monotonic() + wait > deadline:
                    raise self._too_late()
                if pause.wait(wait):
                    return
        finally:
            self._threads.leave()

    async def take_async(self, deadline: float) -> None:
        """The same without blocking the event loop; a cancelled wait takes nothing."""
        turn = self._tasks.get(loop := asyncio.get_running_loop())
        if turn is None:
            turn = self._tasks[loop] = asyncio.Lock()
        if not turn.locked() and not await self._attempt_async():
            return
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)), turn:
                while wait := await self._attempt_async():
                    if time.monotonic() + wait > deadline:
                        raise self._too_late()
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise self._too_late() from None

    async def _attempt_async(self) -> float:
        return self._attempt() if self.in_memory else await asyncio.to_thread(self._attempt)

    # -- what the venue tells ---------------------------------------------------------------

    def follow(self, headers: Mapping[str, str]) -> None:
        """Spend what the venue says that others have read (header ``ratelimit-remaining``)."""
        if (remaining := _remaining(headers)) is not None:
            self._follow(remaining)

    async def follow_async(self, headers: Mapping[str, str]) -> None:
        """The same without blocking the event loop."""
        if (remaining := _remaining(headers)) is not None:
            if self.in_memory:
                self._follow(remaining)
            else:
                await asyncio.to_thread(self._follow, remaining)


def _remaining(headers: Mapping[str, str]) -> int | None:
    text = headers.get("ratelimit-remaining", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else None  # noqa: PLR2004


@cache
def shared_budget(storage_uri: str, key: str, fallback: bool) -> ReadBudget:
    """The one budget of this process for a user: the arguments are :class:`ReadBudget`'s."""
    return ReadBudget(storage_uri, key, fallback=fallback)


def _forget() -> None:
    shared_budget.cache_clear()
    _limiter.cache_clear()


# In the child of a fork another thread's lock would stay locked for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
