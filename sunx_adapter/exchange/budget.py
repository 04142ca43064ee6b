"""The read budget: a limit on the reads in any window, shared by all exchanges of one user.

A window in this process counts every read, whatever the storage. A window on Redis, shared by any
number of processes, is used besides. So a Redis that is flushed, restarted or gone never lets a
process read more than its own share.

A call first reserves a moment, now or later: first come, first served, and no lock is held while
it waits. Its read is counted when there is a connection to write it to, however long connecting
took. A call that is killed blocks nobody: its moment passes.
"""

import contextlib
import hashlib
import os
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ccxt.base.errors import NetworkError, RateLimitExceeded

from sunx_adapter.exchange.redis_windows import MAX_LATE_SECONDS, RedisWindows
from sunx_adapter.exchange.waiting import Waiting
from sunx_adapter.venue import READ_LIMIT

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the budget."""

SLACK_SECONDS: Final = 0.2
"""The window is longer by this: a request may take so much longer to the venue than the others."""

_FRESH_SECONDS: Final = 0.1
"""A read that Redis granted longer ago is asked for anew instead of being written."""

_UNREACHABLE_SECONDS: Final = 5.0
_FEW_USERS: Final = 64
_LONGEST_WINDOW: Final = 60.0
_TICK: Final = 1e-6
_MAX_DIGITS: Final = 8


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``."""

    requests: int
    seconds: float


VENUE_LIMIT: Final = Limit(READ_LIMIT.requests, READ_LIMIT.seconds + SLACK_SECONDS)


class _Window:
    """The reads of one user: when they were written, and the moments that are reserved."""

    __slots__ = ("reserved", "written")

    def __init__(self) -> None:
        self.written: list[float] = []
        self.reserved: list[float] = []

    def forget(self, moment: float) -> None:
        """Remove one read."""
        for moments in (self.reserved, self.written):
            if moment in moments:
                moments.remove(moment)
                return


_lock = threading.Lock()


def _unlock() -> None:
    global _lock  # noqa: PLW0603 - another thread may hold it, and the child of a fork has no other
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class MemoryWindows:
    """Windows in this process, by :func:`time.monotonic`, which never jumps."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._crowded = _FEW_USERS

    def reserve(self, key: str, limit: Limit, latest: float) -> float | None:
        """The first free moment, now or later; ``None`` if it is after ``latest``."""
        with _lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            taken, moment = sorted(window.written + window.reserved), now
            if len(taken) >= limit.requests:
                moment = max(now, taken[-limit.requests] + limit.seconds)
            if moment > max(latest, now):
                return None
            insort(window.reserved, moment)
            return moment

    def count(self, key: str, limit: Limit, moment: float) -> tuple[bool, float]:
        """Count a read with that reserved moment as written now.

        Returns:
            Whether it was counted; and its moment from now on, or else when to try again.
        """
        with _lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            written = window.written
            # Earlier reservations have their share; later ones do not matter.
            excess = len(written) + bisect_left(window.reserved, moment) + 1 - limit.requests
            if moment in written:  # counted before, and not written after all
                excess -= 1
            if excess > 0:
                return False, (written + window.reserved)[excess - 1] + limit.seconds + _TICK
            window.forget(moment)
            written.append(now)
            return True, now

    def give_back(self, key: str, moment: float) -> None:
        """Remove a read that is not written after all."""
        with _lock:
            if (window := self._windows.get(key)) is not None:
                window.forget(moment)

    def spend(self, key: str, limit: Limit, remaining: int) -> None:
        """Leave at most ``remaining`` reads."""
        with _lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            left = limit.requests - len(window.written) - len(window.reserved)
            window.written += [now] * (left - remaining)

    def _current(self, key: str, limit: Limit, now: float) -> _Window:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._crowded:
                self._windows = {k: w for k, w in self._windows.items() if _is_used(w, now)}
                self._crowded = max(2 * len(self._windows), _FEW_USERS)
            window = self._windows[key] = _Window()
        for moments in (window.written, window.reserved):
            del moments[: bisect_right(moments, now - limit.seconds)]
        return window


def _is_used(window: _Window, now: float) -> bool:
    newest = max(window.written[-1:] + window.reserved[-1:], default=0.0)
    return newest > now - _LONGEST_WINDOW


class SharedWindows:
    """The windows that all exchanges of this process share."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all reads, for tests: the venue remembers them."""
        self.memory = MemoryWindows()
        self._redis: dict[tuple[str, int], RedisWindows] = {}

    def redis(self, uri: str) -> RedisWindows:
        """The windows on that Redis. The child of a fork gets connections of its own."""
        key = uri, os.getpid()
        if key not in self._redis:
            self._redis[key] = RedisWindows(uri)
        return self._redis[key]


SHARED_WINDOWS: Final = SharedWindows()


class _UnreachableError(Exception):
    """The storage does not answer."""


class _MemoryRead:
    """One read in a window of this process."""

    def __init__(self, windows: MemoryWindows, key: str, limit: Limit, waiting: Waiting) -> None:
        self._windows, self._key, self._limit = windows, key, limit
        self._waiting = waiting
        self._moment: float | None = None

    async def reserve(self, deadline: float) -> None:
        moment = self._moment = self._windows.reserve(self._key, self._limit, deadline)
        if moment is None:
            raise _used_up()
        await self.wait_until(moment, deadline)

    async def take(self, deadline: float) -> None:
        if self._moment is None:
            await self.reserve(deadline)
        while True:
            assert self._moment is not None
            counted, moment = self._windows.count(self._key, self._limit, self._moment)
            if counted:
                self._moment = moment
                return
            await self.wait_until(moment, deadline)

    async def wait_until(self, moment: float, deadline: float) -> None:
        if moment > deadline:
            raise _used_up()
        while (wait := moment - time.monotonic()) > 0:
            await self._waiting.pause(wait)

    def give_back(self) -> None:
        if self._moment is not None:
            self._windows.give_back(self._key, self._moment)
            self._moment = None

    def spend(self, remaining: int) -> None:
        self._windows.spend(self._key, self._limit, remaining)


class _RedisRead:
    """One read in a window on Redis, or in ``fallback`` if Redis is unreachable."""

    def __init__(
        self, windows: RedisWindows, user: str, fallback: _MemoryRead | None, waiting: Waiting
    ) -> None:
        self._windows, self._user, self._fallback = windows, user, fallback
        self._waiting = waiting
        self._fresh_until = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether the granted read may still be written."""
        return time.monotonic() <= self._fresh_until

    async def take(self, deadline: float) -> None:
        windows = self._windows
        while not self.is_fresh:
            asked, late = time.monotonic(), windows.late
            try:
                wait = await self._ask(deadline, late)
            except _UnreachableError as error:
                if self._fallback is None:
                    raise NetworkError(
                        "the storage of the read budget (options['rateLimitStorage']) cannot be "
                        f"reached: {error}. Start it, or set options['rateLimitFallback'] = "
                        "'memory' to go on with a quarter of the budget"
                    ) from None
                # Reads granted to other processes just before may still be on their way.
                await self._fallback.wait_until(windows.answered + VENUE_LIMIT.seconds, deadline)
                await self._fallback.take(deadline)
                self._fresh_until = time.monotonic() + _FRESH_SECONDS
                return
            if wait:
                if asked + wait > deadline:
                    raise _used_up()
                await self._waiting.pause(wait)
                continue
            took = time.monotonic() - asked
            windows.late = min(2 * took, MAX_LATE_SECONDS) if took > _FRESH_SECONDS else 0.0
            self._fresh_until = asked + late + _FRESH_SECONDS

    async def spend(self, remaining: int, deadline: float) -> None:
        # Not for long: the answer is there, and the next read will learn the same.
        soon = min(deadline, time.monotonic() + _FRESH_SECONDS)
        with contextlib.suppress(_UnreachableError, TimeoutError):
            await self._ask(soon, 0.0, remaining)

    async def _ask(self, deadline: float, late: float, remaining: int = -1) -> float:
        windows, now = self._windows, time.monotonic()
        if self._fallback is not None and now < windows.unreachable_until:
            raise _UnreachableError
        # The fallback needs some of the time.
        until = deadline if self._fallback is None else now + (deadline - now) / 4
        try:
            return await self._waiting.background(
                lambda: windows.ask(self._user, VENUE_LIMIT, late, remaining), until
            )
        except Exception as error:
            if isinstance(error, TimeoutError) and time.monotonic() >= deadline:
                raise
            windows.unreachable_until = time.monotonic() + _UNREACHABLE_SECONDS
            failure = _UnreachableError(type(error).__name__)
        raise failure


class ReadBudget:
    """One read of one call, in every window that counts it.

    Args:
        user: whose budget it is.
        storage: ``options["rateLimitStorage"]``.
        longest: how many seconds to wait at most; ``None``: until the deadline.
        fallback: whether to go on with a part of the budget if the storage is unreachable.
        pace: a further window of the exchange's own and its limit, where it is to read more slowly.
        waiting: how to wait.

    Raises:
        NotSupported: the storage is unknown.
    """

    def __init__(
        self,
        user: str,
        storage: str,
        *,
        longest: float | None,
        fallback: bool,
        pace: tuple[MemoryWindows, Limit] | None,
        waiting: Waiting,
    ) -> None:
        self._longest = longest
        venue = _MemoryRead(SHARED_WINDOWS.memory, user, VENUE_LIMIT, waiting)
        self._in_memory = [venue]
        if pace is not None:
            self._in_memory.insert(0, _MemoryRead(pace[0], user, pace[1], waiting))
        self._on_redis: _RedisRead | None = None
        if storage != MEMORY:
            less = None
            if fallback:
                share = VENUE_LIMIT._replace(requests=VENUE_LIMIT.requests // FALLBACK_SHARE)
                less = _MemoryRead(SHARED_WINDOWS.memory, f"{user} less", share, waiting)
            self._on_redis = _RedisRead(SHARED_WINDOWS.redis(storage), user, less, waiting)

    async def reserve(self, deadline: float) -> None:
        """Reserve a moment and wait for it, before connecting.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.

        Raises:
            RateLimitExceeded: no read is left before the deadline.
        """
        for read in self._in_memory:
            await read.reserve(self._latest(deadline))

    async def take(self, deadline: float) -> None:
        """Count the read, which is to be written at once.

        Raises:
            RateLimitExceeded: no read is left before the deadline.
            NetworkError: the storage is unreachable.
        """
        latest = self._latest(deadline)
        while True:
            if self._on_redis is not None:
                await self._on_redis.take(latest)
            # Last, so that nothing is waited for between counting and writing.
            for read in self._in_memory:
                await read.take(latest)
            if self._on_redis is None or self._on_redis.is_fresh:
                return

    def give_back(self) -> None:
        """The read is not written."""
        for read in self._in_memory:
            read.give_back()

    async def follow(self, headers: Mapping[str, str], deadline: float) -> None:
        """Spend what others have read, by the venue's header ``ratelimit-remaining``."""
        text = headers.get("ratelimit-remaining", "")
        if text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS:
            self._in_memory[-1].spend(int(text))
            if self._on_redis is not None:
                await self._on_redis.spend(int(text), deadline)

    def _latest(self, deadline: float) -> float:
        if self._longest is None:
            return deadline
        return min(deadline, time.monotonic() + self._longest)


def _used_up() -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the budget of {READ_LIMIT.requests} reads in {READ_LIMIT.seconds} s is used up, and the "
        "timeout ends before the next one; read less often, or raise timeout"
    )


@lru_cache(maxsize=4096)
def user_of_key(api_key: str) -> str:
    """A name for the user of a key whose UID is unknown; the key cannot be read from it."""
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
