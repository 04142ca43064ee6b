"""The read budget: at most so many reads in any window, shared by all who read for one user.

A window in this process counts every read, whatever the storage; one on Redis, shared by any
number of processes, is asked besides. So a Redis that is flushed, restarted or gone never lets a
process read more than its own share.

A call first reserves a moment, now or later: first come, first served, and nobody holds a lock
while waiting. When there is a connection to write to, the read is counted at that very moment,
however long connecting took. If a call is killed, the moment that it reserved passes all the same.
"""

import contextlib
import hashlib
import os
import threading
import time
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Final, NamedTuple
from weakref import WeakSet

from ccxt.base.errors import NetworkError, NotSupported, RateLimitExceeded

from sunx_adapter.exchange.waiting import Waiting
from sunx_adapter.venue import READ_LIMIT

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the budget."""

SLACK_SECONDS: Final = 0.2
"""The window is longer by this: requests may be so much longer on the way than their neighbours."""

_FRESH_SECONDS: Final = 0.1
"""A read that Redis gave longer ago is not written any more, but asked for anew."""

_REDIS_SECONDS: Final = 2.0
_UNREACHABLE_SECONDS: Final = 5.0
_FEW_USERS: Final = 64
_LONGEST_WINDOW: Final = 60.0
_TICK: Final = 1e-6
_MOST_LATE_SECONDS: Final = 4.0

_MOST_DIGITS: Final = 8


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``."""

    requests: int
    seconds: float


VENUE_LIMIT: Final = Limit(READ_LIMIT.requests, READ_LIMIT.seconds + SLACK_SECONDS)


class _Window:
    """The reads of one user: the moments of those written, and of those in line for one."""

    __slots__ = ("in_line", "written")

    def __init__(self) -> None:
        self.written: list[float] = []
        self.in_line: list[float] = []

    def forget(self, moment: float) -> None:
        """Take one read out."""
        for moments in (self.in_line, self.written):
            if moment in moments:
                moments.remove(moment)
                return


class MemoryWindows:
    """Windows in this process, by :func:`time.monotonic`, which never jumps."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()
        self._crowded = _FEW_USERS
        _all_windows.add(self)

    def unlock(self) -> None:
        """For the child of a fork, where another thread's lock would stay locked for ever."""
        self._lock = threading.Lock()

    def reserve(self, key: str, limit: Limit, latest: float) -> float | None:
        """Get in line: one's moment, now or later; ``None`` if there is none by the latest."""
        with self._lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            taken, moment = sorted(window.written + window.in_line), now
            if len(taken) >= limit.requests:
                moment = max(now, taken[-limit.requests] + limit.seconds)
            if moment > max(latest, now):
                return None
            insort(window.in_line, moment)
            return moment

    def count(self, key: str, limit: Limit, moment: float) -> tuple[bool, float]:
        """Count a read as written now, if that may be; and that moment, or when to ask again.

        Those before it in line have their share, those behind it do not matter.
        """
        with self._lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            written = window.written
            excess = len(written) + bisect_left(window.in_line, moment) + 1 - limit.requests
            if moment in written:  # counted before, and not written after all
                excess -= 1
            if excess > 0:
                return False, (written + window.in_line)[excess - 1] + limit.seconds + _TICK
            window.forget(moment)
            written.append(now)
            return True, now

    def give_back(self, key: str, moment: float) -> None:
        """A read is not written after all."""
        with self._lock:
            if (window := self._windows.get(key)) is not None:
                window.forget(moment)

    def spend(self, key: str, limit: Limit, remaining: int) -> None:
        """Leave no more than so many reads."""
        with self._lock:
            now = time.monotonic()
            window = self._current(key, limit, now)
            left = limit.requests - len(window.written) - len(window.in_line)
            window.written += [now] * (left - remaining)

    def _current(self, key: str, limit: Limit, now: float) -> _Window:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._crowded:
                self._windows = {
                    k: each for k, each in self._windows.items() if _is_used(each, now)
                }
                self._crowded = max(2 * len(self._windows), _FEW_USERS)
            window = self._windows[key] = _Window()
        for moments in (window.written, window.in_line):
            del moments[: bisect_right(moments, now - limit.seconds)]
        return window


def _is_used(window: _Window, now: float) -> bool:
    newest = max(window.written[-1:] + window.in_line[-1:], default=0.0)
    return newest > now - _LONGEST_WINDOW


_all_windows: Final[WeakSet[MemoryWindows]] = WeakSet()


def _unlock_in_child() -> None:
    for windows in list(_all_windows):
        windows.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)

_process_windows: Final = MemoryWindows()
"""All reads of this process, whatever exchange makes them."""


_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local key, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local late, name, remaining = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local most_late = tonumber(ARGV[6])

redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
local taken = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
local count = #taken / 2
if count > 0 and tonumber(taken[#taken]) > now + most_late + 1 then
    -- The clock of Redis went back. What was read is taken as read just now.
    for each = 1, #taken, 2 do redis.call('ZADD', key, now, taken[each]) end
    taken = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
end

local wait, spent = 0, 1
if remaining >= 0 then
    spent = limit - count - remaining
elseif count >= limit then
    wait, spent = tonumber(taken[2 * (count - limit) + 2]) + window - now, 0
end
for each = 1, spent do
    redis.call('ZADD', key, string.format('%.6f', now + late), name .. '/' .. each)
end
redis.call('PEXPIRE', key, math.ceil((window + late) * 1000))
return string.format('%.6f', wait)
"""


class RedisWindows:
    """Windows on Redis, by the clock of Redis: machines need not agree on the time.

    Args:
        uri: ``redis://``, ``rediss://`` or ``unix://``.

    Attributes:
        late: how many seconds late reads are to be counted, since Redis takes so long to answer.
        unreachable_until: until when it is not asked if there is a fallback.
        answered: when it last answered.

    Raises:
        NotSupported: it cannot be used; it may hold a password, and is not repeated.
    """

    def __init__(self, uri: str) -> None:
        if not uri.startswith(("redis://", "rediss://", "unix://")):
            raise NotSupported(
                "options['rateLimitStorage'] must be memory:// or, with the extra "
                "sunx-adapter[redis], redis://host:port/db, rediss://… or unix://…"
            )
        if find_spec("redis") is None:
            raise NotSupported("for options['rateLimitStorage'] install sunx-adapter[redis]")
        from redis import Redis  # noqa: PLC0415 - of the extra "redis"
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        seconds = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _REDIS_SECONDS)
        try:
            client = Redis.from_url(uri, retry=Retry(NoBackoff(), 0), **seconds)
        except ValueError:
            client = None
        if client is None:
            raise NotSupported(
                "options['rateLimitStorage'] is no address of a Redis: redis://host:port/db"
            )
        self._script = client.register_script(_SCRIPT)
        self.late = 0.0
        self.unreachable_until = 0.0
        self.answered = 0.0

    def ask(self, key: str, limit: Limit, late: float, remaining: int = -1) -> float:
        """Take a read, or leave no more than ``remaining``. Blocks; raises what redis raises.

        Returns:
            0, or the seconds to wait before asking again.
        """
        name = uuid.uuid4().hex
        told = float(
            self._script(
                [f"sunx-adapter/{key}"], [*limit, late, name, remaining, _MOST_LATE_SECONDS]
            )
        )
        self.answered = time.monotonic()
        return told


@lru_cache(maxsize=64)
def _redis_windows(uri: str, process: int) -> RedisWindows:  # noqa: ARG001 - a fork gets its own
    return RedisWindows(uri)


class _UnreachableError(Exception):
    """The storage does not answer."""


class _InMemory:
    """One read of one call, in one window of this process."""

    def __init__(self, windows: MemoryWindows, key: str, limit: Limit, waiting: Waiting) -> None:
        self._windows, self._key, self._limit = windows, key, limit
        self._waiting = waiting
        self._moment: float | None = None

    async def reserve(self, deadline: float) -> None:
        """Get in line, and wait for one's moment."""
        moment = self._moment = self._windows.reserve(self._key, self._limit, deadline)
        if moment is None:
            raise _used_up()
        await self.wait_until(moment, deadline)

    async def take(self, deadline: float) -> None:
        """Count the read as written now, waiting until it may be."""
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
        """Wait for a moment."""
        if moment > deadline:
            raise _used_up()
        while (wait := moment - time.monotonic()) > 0:
            await self._waiting.pause(wait)

    def give_back(self) -> None:
        """The read is not written."""
        if self._moment is not None:
            self._windows.give_back(self._key, self._moment)
            self._moment = None

    def spend(self, remaining: int) -> None:
        """Leave no more than so many reads."""
        self._windows.spend(self._key, self._limit, remaining)


class _OnRedis:
    """One read of one call, in a window that processes share."""

    def __init__(
        self, windows: RedisWindows, user: str, fallback: _InMemory | None, waiting: Waiting
    ) -> None:
        self._windows, self._user, self._fallback = windows, user, fallback
        self._waiting = waiting
        self._fresh_until = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether the read that Redis gave may still be written."""
        return time.monotonic() <= self._fresh_until

    async def take(self, deadline: float) -> None:
        """Take a read, asking until there is one; a fresh one is kept."""
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
                # What others were given just before may still be on its way.
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
            windows.late = min(2 * took, _MOST_LATE_SECONDS) if took > _FRESH_SECONDS else 0.0
            self._fresh_until = asked + late + _FRESH_SECONDS

    async def spend(self, remaining: int, deadline: float) -> None:
        """Leave no more than so many reads."""
        # Not for long: the answer is there, and the next read will tell.
        soon = min(deadline, time.monotonic() + _FRESH_SECONDS)
        with contextlib.suppress(_UnreachableError, TimeoutError):
            await self._ask(soon, 0.0, remaining)

    async def _ask(self, deadline: float, late: float, remaining: int = -1) -> float:
        windows, now = self._windows, time.monotonic()
        if self._fallback is not None and now < windows.unreachable_until:
            raise _UnreachableError
        # With something to fall back on, there has to be time for it.
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
    """One read of one call, in every window that counts for it.

    Args:
        user: whose budget it is.
        storage: ``options["rateLimitStorage"]``.
        longest: how many seconds to wait at most; ``None``: as long as there is time.
        fallback: whether to go on with a part of the budget if the storage cannot be reached.
        pace: the exchange's own window besides, and its limit, where it is to read more slowly.
        waiting: how to wait.

    Raises:
        NotSupported: the storage is none that is known.
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
        self._own = _InMemory(_process_windows, user, VENUE_LIMIT, waiting)
        self._pace = None if pace is None else _InMemory(pace[0], user, pace[1], waiting)
        self._shared: _OnRedis | None = None
        if storage != MEMORY:
            share = VENUE_LIMIT._replace(requests=VENUE_LIMIT.requests // FALLBACK_SHARE)
            less = _InMemory(_process_windows, f"{user} less", share, waiting) if fallback else None
            self._shared = _OnRedis(_redis_windows(storage, os.getpid()), user, less, waiting)

    async def reserve(self, deadline: float) -> None:
        """Get in line, before there is a connection: first come, first served.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.

        Raises:
            RateLimitExceeded: there is no read before the deadline.
        """
        if self._pace is not None:
            await self._pace.reserve(self._latest(deadline))
        await self._own.reserve(self._latest(deadline))

    async def take(self, deadline: float) -> None:
        """Count the read, which is to be written at once.

        Raises:
            RateLimitExceeded: there is no read before the deadline.
            NetworkError: the storage cannot be reached.
        """
        latest = self._latest(deadline)
        if self._pace is not None:
            await self._pace.take(latest)
        while True:
            if self._shared is not None:
                await self._shared.take(latest)
            # Last, so that nothing is waited for between counting and writing.
            await self._own.take(latest)
            if self._shared is None or self._shared.is_fresh:
                return

    def give_back(self) -> None:
        """The read is not written."""
        self._own.give_back()
        if self._pace is not None:
            self._pace.give_back()

    async def follow(self, headers: Mapping[str, str], deadline: float) -> None:
        """Spend what the venue says that others have read (header ``ratelimit-remaining``)."""
        text = headers.get("ratelimit-remaining", "")
        if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS:
            self._own.spend(int(text))
            if self._shared is not None:
                await self._shared.spend(int(text), deadline)

    def _latest(self, deadline: float) -> float:
        return (
            deadline if self._longest is None else min(deadline, time.monotonic() + self._longest)
        )


def _used_up() -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the budget of {READ_LIMIT.requests} reads in {READ_LIMIT.seconds} s is used up, and the "
        "timeout ends before the next one; read less often, or raise timeout"
    )


@lru_cache(maxsize=4096)
def user_of_key(api_key: str) -> str:
    """The user of a key whose UID is not known: the key stands for it, but cannot be read."""
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
