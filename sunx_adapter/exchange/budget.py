"""The read budget: at most so many reads in any window, shared by all who read for one user.

A window in this process counts every read, whatever the storage; one on Redis, shared by any
number of processes, is asked besides. So a Redis that is flushed, restarted or gone never lets a
process read more than its own share.

A read is taken when there is a connection to write it to. What is taken is a moment, which may be
in the future: whoever comes first gets the first one, nobody holds a lock while waiting, and
whatever becomes of who waits, the moment passes.
"""

import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Final, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

from ccxt.base.errors import NetworkError, NotSupported, RateLimitExceeded

from sunx_adapter.venue import READ_LIMIT

Result = TypeVar("Result")

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the budget."""

SLACK_SECONDS: Final = 0.2
"""The window is longer by this: requests may be so much longer on the way than their neighbours."""

_FRESH_SECONDS: Final = 0.1
"""A read that was taken longer ago is not written any more, but taken anew."""

_REDIS_SECONDS: Final = 2.0
_UNREACHABLE_SECONDS: Final = 5.0
_MOST_DIGITS: Final = 8


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``."""

    requests: int
    seconds: float


VENUE_LIMIT: Final = Limit(READ_LIMIT.requests, READ_LIMIT.seconds + SLACK_SECONDS)


class Waiting(Protocol):
    """How a call waits: the verbs in which threads and tasks differ."""

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until the exchange is closed."""

    async def background(self, work: Callable[[], Result], deadline: float) -> Result:
        """What blocking work gives, done in a thread of its own.

        Raises:
            TimeoutError: it gave nothing by the deadline.
        """


_all_windows: Final["WeakSet[MemoryWindows]"] = WeakSet()


def _unlock_in_child() -> None:
    for windows in list(_all_windows):
        windows.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)


class MemoryWindows:
    """Windows in this process, by a clock that never jumps."""

    def __init__(self) -> None:
        self._moments: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._crowded = 64
        _all_windows.add(self)

    def unlock(self) -> None:
        """For the child of a fork, where another thread's lock would stay locked for ever."""
        self._lock = threading.Lock()

    def take(self, key: str, limit: Limit, latest: float) -> float | None:
        """The moment of the next read, now or later; ``None`` if there is none by the latest.

        Args:
            key: whose window.
            limit: what fits into it.
            latest: on :func:`time.monotonic`'s clock, as the result.
        """
        with self._lock:
            now = time.monotonic()
            moments = self._current(key, limit, now)
            moment = max(now, moments[-1]) if moments else now
            if len(moments) >= limit.requests:
                moment = max(moment, moments[-limit.requests] + limit.seconds)
            if moment > max(latest, now):
                return None
            moments.append(moment)
            return moment

    def give_back(self, key: str, moment: float) -> None:
        """A read that was taken is not written after all."""
        with self._lock:
            moments = self._moments.get(key, ())
            if moment in moments:
                self._moments[key].remove(moment)

    def spend(self, key: str, limit: Limit, remaining: int) -> None:
        """Leave no more than so many reads."""
        with self._lock:
            now = time.monotonic()
            moments = self._current(key, limit, now)
            last = max(now, moments[-1]) if moments else now
            moments.extend([last] * (limit.requests - len(moments) - remaining))

    def _current(self, key: str, limit: Limit, now: float) -> deque[float]:
        moments = self._moments.get(key)
        if moments is None:
            if len(self._moments) >= self._crowded:
                old = now - limit.seconds
                kept = {k: each for k, each in self._moments.items() if each and each[-1] > old}
                self._moments, self._crowded = kept, max(2 * len(kept), 64)
            moments = self._moments[key] = deque()
        while moments and moments[0] <= now - limit.seconds:
            moments.popleft()
        return moments


_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local key, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local late, name, remaining = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])

redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
local taken = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
local count = #taken / 2
if count > 0 and tonumber(taken[#taken]) > now + window then
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

        try:
            client = Redis.from_url(
                uri,
                socket_timeout=_REDIS_SECONDS,
                socket_connect_timeout=_REDIS_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            client = None
        if client is None:
            raise NotSupported(
                "options['rateLimitStorage'] is no address of a Redis: redis://host:port/db"
            )
        self._script = client.register_script(_SCRIPT)
        self.late = 0.0
        """How many seconds late reads are to be counted, since Redis takes so long to answer."""
        self.unreachable_until = 0.0
        """Until when it is not asked, on :func:`time.monotonic`'s clock, if there is a fallback."""

    def ask(self, key: str, limit: Limit, late: float, remaining: int = -1) -> float:
        """Take a read, or leave no more than ``remaining``. Blocks.

        Returns:
            0, or the seconds to wait before asking again.

        Raises:
            Exception: of the package redis, if it cannot be reached.
        """
        name = uuid.uuid4().hex
        said = self._script([f"sunx-adapter/{key}"], [*limit, late, name, remaining])
        return float(said)


_process_windows: Final = MemoryWindows()
"""All reads of this process, whatever exchange makes them."""


@lru_cache(maxsize=64)
def _redis_windows(uri: str, process: int) -> RedisWindows:  # noqa: ARG001 - a fork gets its own
    return RedisWindows(uri)


class _InMemory:
    """The reads of one call in one window of this process."""

    def __init__(self, windows: MemoryWindows, key: str, limit: Limit) -> None:
        self._windows, self._key, self._limit = windows, key, limit
        self._moment: float | None = None

    async def take(self, waiting: Waiting, deadline: float) -> float:
        """Take a read, and wait for its moment; gives until when it may be written."""
        self.give_back()
        moment = self._moment = self._windows.take(self._key, self._limit, deadline)
        if moment is None:
            raise _used_up()
        try:
            while (wait := moment - time.monotonic()) > 0:
                await waiting.pause(wait)
        except BaseException:
            self.give_back()
            raise
        return moment + _FRESH_SECONDS

    def give_back(self) -> None:
        """What was taken is not written."""
        if self._moment is not None:
            self._windows.give_back(self._key, self._moment)
            self._moment = None

    async def spend(self, remaining: int, waiting: Waiting, deadline: float) -> None:  # noqa: ARG002
        """Leave no more than so many reads."""
        self._windows.spend(self._key, self._limit, remaining)


class _OnRedis:
    """The reads of one call in a window that processes share.

    Args:
        windows: where it is.
        user: whose it is.
        fallback: what to take from if Redis cannot be reached, if anything.
    """

    def __init__(self, windows: RedisWindows, user: str, fallback: _InMemory | None) -> None:
        self._windows, self._user, self._fallback = windows, user, fallback

    async def take(self, waiting: Waiting, deadline: float) -> float:
        """Take a read, asking until there is one; gives until when it may be written."""
        windows = self._windows
        while True:
            asked, late = time.monotonic(), windows.late
            try:
                wait = await self._asked(waiting, deadline, late)
            except _UnreachableError as error:
                if self._fallback is None:
                    raise NetworkError(
                        "the storage of the read budget (options['rateLimitStorage']) cannot be "
                        f"reached: {error}. Start it, or set options['rateLimitFallback'] = "
                        "'memory' to go on with a quarter of the budget"
                    ) from None
                return await self._fallback.take(waiting, deadline)
            if wait == 0:
                took = time.monotonic() - asked
                windows.late = 2 * took if took > _FRESH_SECONDS else 0.0
                return asked + late + _FRESH_SECONDS
            if asked + wait > deadline:
                raise _used_up()
            await waiting.pause(wait)

    def give_back(self) -> None:
        """What was taken stays taken, until it has passed."""

    async def spend(self, remaining: int, waiting: Waiting, deadline: float) -> None:
        """Leave no more than so many reads."""
        with contextlib.suppress(_UnreachableError):  # the next read will tell
            await self._asked(waiting, deadline, 0.0, remaining)

    async def _asked(
        self, waiting: Waiting, deadline: float, late: float, remaining: int = -1
    ) -> float:
        windows, now = self._windows, time.monotonic()
        if self._fallback is not None and now < windows.unreachable_until:
            raise _UnreachableError
        # With something to fall back on, there has to be time for it.
        until = deadline if self._fallback is None else now + (deadline - now) / 4
        try:
            return await waiting.background(
                lambda: windows.ask(self._user, VENUE_LIMIT, late, remaining), until
            )
        except Exception as error:
            if isinstance(error, TimeoutError) and time.monotonic() >= deadline:
                raise
            windows.unreachable_until = time.monotonic() + _UNREACHABLE_SECONDS
            failure = _UnreachableError(type(error).__name__)
        raise failure


class _UnreachableError(Exception):
    """The storage does not answer."""


class ReadBudget:
    """What a user may read, as seen by one call.

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
        self._waiting = waiting
        self._windows: list[_InMemory | _OnRedis] = [_InMemory(_process_windows, user, VENUE_LIMIT)]
        if storage != MEMORY:
            share = VENUE_LIMIT._replace(requests=VENUE_LIMIT.requests // FALLBACK_SHARE)
            less = _InMemory(_process_windows, f"{user} fallback", share) if fallback else None
            self._windows.insert(0, _OnRedis(_redis_windows(storage, os.getpid()), user, less))
        self._told = list(self._windows)
        if pace is not None:
            self._windows.append(_InMemory(pace[0], user, pace[1]))
        self._fresh_until = [0.0] * len(self._windows)

    async def take(self, deadline: float) -> None:
        """Take a read, to be written at once. What was taken just now and not written still counts.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.

        Raises:
            RateLimitExceeded: there is none before the deadline.
            NetworkError: the storage cannot be reached.
        """
        if self._longest is not None:
            deadline = min(deadline, time.monotonic() + self._longest)
        while (oldest := min(self._fresh_until)) < time.monotonic():
            index = self._fresh_until.index(oldest)
            self._fresh_until[index] = await self._windows[index].take(self._waiting, deadline)

    def give_back(self) -> None:
        """What was taken is not written."""
        for windows in self._windows:
            windows.give_back()

    async def follow(self, headers: Mapping[str, str], deadline: float) -> None:
        """Spend what the venue says that others have read (header ``ratelimit-remaining``)."""
        text = headers.get("ratelimit-remaining", "")
        if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS:
            for windows in self._told:
                await windows.spend(int(text), self._waiting, deadline)


def _used_up() -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the budget of {READ_LIMIT.requests} reads in {READ_LIMIT.seconds} s is used up, and the "
        "timeout ends before the next one; read less often, or raise timeout"
    )


@lru_cache(maxsize=4096)
def user_of_key(api_key: str) -> str:
    """The user of a key whose UID is not known: the key stands for it, but cannot be read."""
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
