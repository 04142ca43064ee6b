"""The read limit: counts the reads in any window, for all exchanges of one user together.

Every read is counted in this process. With Redis, it is also counted there, for any number of
processes. So a Redis that is flushed, restarted or gone never lets a process exceed the limit.

A call first reserves a time, in order of arrival, and waits for it without a lock. Its read is
counted once there is a connection, right before it is written. Until the write is confirmed, the
read counts as made now; afterwards, as made when it was confirmed. In between, the thread may be
suspended, or the user's transport may still be connecting. A killed call blocks nobody: its
reservation expires.
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

from sunx_adapter.exchange.redis_windows import MAX_LATE_SECONDS, RedisWindows, redis_windows
from sunx_adapter.exchange.waiting import Waiting
from sunx_adapter.venue import READ_LIMIT

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the limit."""

SLACK_SECONDS: Final = 0.2
"""Added to the window, because requests take different times to reach the venue."""

_FRESH_SECONDS: Final = 0.1
"""After this time, a read that Redis granted must be requested again."""

_UNREACHABLE_SECONDS: Final = 5.0
_FEW_USERS: Final = 64
_LONGEST_SECONDS: Final = 60.0
_TICK: Final = 1e-6
_MAX_DIGITS: Final = 8


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``."""

    requests: int
    seconds: float


VENUE_LIMIT: Final = Limit(READ_LIMIT.requests, READ_LIMIT.seconds + SLACK_SECONDS)


class _Window:
    """The reads of one user, each by its moment.

    Attributes:
        reserved: times that waiting calls have reserved.
        sending: when reads were counted whose write is not confirmed.
        written: when writes were confirmed.
    """

    __slots__ = ("reserved", "sending", "written")

    def __init__(self) -> None:
        self.reserved: list[float] = []
        self.sending: list[float] = []
        self.written: list[float] = []

    def forget(self, until: float, abandoned: float) -> None:
        """Drop written and reserved reads up to ``until``, unconfirmed ones up to ``abandoned``."""
        for moments in (self.written, self.reserved):
            del moments[: bisect_right(moments, until)]
        if self.sending and self.sending[0] <= abandoned:
            self.sending = [moment for moment in self.sending if moment > abandoned]

    def add(self, other: "_Window") -> None:
        """Add the reads of another window."""
        for moments, others in (
            (self.reserved, other.reserved),
            (self.sending, other.sending),
            (self.written, other.written),
        ):
            moments[:] = sorted(moments + others)

    def is_empty(self) -> bool:
        """Whether it has no read that counts."""
        return not (self.reserved or self.sending or self.written)


# Reentrant: a signal handler may read, too, in the middle of what is locked.
_lock = threading.RLock()


def _unlock() -> None:
    global _lock  # noqa: PLW0603 - in a forked child, no thread exists that could release it
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class MemoryWindows:
    """Windows in this process by user, by :func:`time.monotonic`, which never jumps."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all reads. For tests only: the venue still counts them."""
        self._windows: dict[str, _Window] = {}
        self._process = os.getpid()
        self._clean_up_at = _FEW_USERS
        self._users: dict[str, str] = {}

    def user_of(self, venue: str, api_key: str, uid: str | None) -> str:
        """The user whose reads count together: a UID, or an API key while its UID is unknown.

        Args:
            venue: the exchange's id.
            api_key: of the request; the result does not reveal it.
            uid: of the key, if known. Reads of the key count for it from now on, earlier ones too.
        """
        key = f"{venue}:{_name_of(api_key)}"
        user = f"{venue}:{uid}" if uid else self._users.get(key, key)
        if user != self._users.get(key, key):
            with _lock:
                self._users[key] = user
                if (earlier := self._windows.pop(key, None)) is not None:
                    self.current(user, _LONGEST_SECONDS, time.monotonic()).add(earlier)
        return user

    def current(self, user: str, seconds: float, now: float) -> _Window:
        """A user's reads of the last ``seconds``. The caller holds the lock."""
        user = self._users.get(user, user)  # for a read that began before the UID was known
        abandoned = now - _LONGEST_SECONDS
        if self._process != os.getpid():
            self._process = os.getpid()
            for inherited in self._windows.values():
                inherited.sending.clear()  # the parent sends them
        window = self._windows.get(user)
        if window is None:
            if len(self._windows) >= self._clean_up_at:
                for other, used in list(self._windows.items()):
                    used.forget(abandoned, abandoned)
                    if used.is_empty():
                        self._windows.pop(other, None)
                self._clean_up_at = max(2 * len(self._windows), _FEW_USERS)
            window = self._windows[user] = _Window()
        window.forget(now - seconds, abandoned)
        return window


SHARED_WINDOWS: Final = MemoryWindows()
"""The windows that all exchanges of this process share."""


class _MemoryRead:
    """One read in a window of this process, at a moment that is reserved first."""

    def __init__(self, windows: MemoryWindows, user: str, limit: Limit, waiting: Waiting) -> None:
        self._windows, self._user, self._limit = windows, user, limit
        self._waiting = waiting
        self._moment: float | None = None
        self._counted = False

    async def reserve(self, deadline: float) -> None:
        """Reserve the first free moment, and wait for it."""
        requests, seconds = self._limit
        with _lock:
            window, moment = self._now()
            taken = sorted(window.written + [moment] * len(window.sending) + window.reserved)
            if len(taken) >= requests:
                moment = max(moment, taken[-requests] + seconds)
            if moment > deadline:
                raise _used_up()
            self._moment = moment
            insort(window.reserved, moment)
        await self.wait_until(moment, deadline)

    async def take(self, deadline: float) -> None:
        """Count the read now, or as soon as there is room; a repeated call counts it again."""
        if self._moment is None:
            await self.reserve(deadline)
        while full_until := self._count():
            await self.wait_until(full_until, deadline)

    def _count(self) -> float | None:
        requests, seconds = self._limit
        with _lock:
            (window, now), moment = self._now(), self._moment
            assert moment is not None
            self._forget(window)  # it may have been counted before without being written
            # Counted first, then judged: a signal handler may count a read in between.
            self._moment, self._counted = now, True
            window.sending.append(now)
            # Earlier reservations have their share; later ones do not matter.
            earlier = bisect_left(window.reserved, moment)
            excess = len(window.written) + len(window.sending) + earlier - requests
            if excess <= 0:
                return None
            taken = window.written + [now] * len(window.sending) + window.reserved
            self._forget(window)
            self._moment, self._counted = moment, False
            insort(window.reserved, moment)
            return taken[excess - 1] + seconds + _TICK

    async def wait_until(self, moment: float, deadline: float) -> None:
        """Wait; raises RateLimitExceeded if the moment is after the deadline."""
        if moment > deadline:
            raise _used_up()
        while (wait := moment - time.monotonic()) > 0:
            await self._waiting.pause(wait)

    def settle(self, *, written: bool) -> None:
        """Confirm that the read was written, or give it back."""
        if self._moment is not None:
            with _lock:
                window, now = self._now()
                if written:
                    insort(window.written, now)
                self._forget(window)
            self._moment = None

    def spend(self, remaining: int) -> None:
        """Leave at most ``remaining`` reads."""
        with _lock:
            window, now = self._now()
            used = len(window.written) + len(window.sending) + len(window.reserved)
            window.written += [now] * (self._limit.requests - used - remaining)

    def _forget(self, window: _Window) -> None:
        moments = window.sending if self._counted else window.reserved
        if self._moment in moments:  # else it has expired, or an exception interrupted _count()
            moments.remove(self._moment)

    def _now(self) -> tuple[_Window, float]:
        now = time.monotonic()
        return self._windows.current(self._user, self._limit.seconds, now), now


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
        """Request a read from Redis, unless one was granted just before."""
        windows = self._windows
        while not self.is_fresh:
            asked, late = time.monotonic(), windows.late
            try:
                wait = await self._ask(deadline, late)
            except NetworkError:
                if self._fallback is None:
                    raise
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
        """Leave at most ``remaining`` reads."""
        # Only briefly: the answer has arrived, and the next one reports the limit again.
        soon = min(deadline, time.monotonic() + _FRESH_SECONDS)
        with contextlib.suppress(NetworkError, TimeoutError):
            await self._ask(soon, 0.0, remaining)

    async def _ask(self, deadline: float, late: float, remaining: int = -1) -> float:
        windows, now, reason = self._windows, time.monotonic(), "it did not answer a moment ago"
        # The fallback needs some of the time.
        until = deadline if self._fallback is None else now + (deadline - now) / 4
        if self._fallback is None or now >= windows.unreachable_until:
            try:
                return await self._waiting.background(
                    lambda: windows.ask(self._user, VENUE_LIMIT, late, remaining), until
                )
            except Exception as error:
                if isinstance(error, TimeoutError) and time.monotonic() >= deadline:
                    raise
                windows.unreachable_until = time.monotonic() + _UNREACHABLE_SECONDS
                reason = type(error).__name__
        raise NetworkError(
            "the storage of the read limit (options['rateLimitStorage']) cannot be reached: "
            f"{reason}. Start it, or set options['rateLimitFallback'] = 'memory' to go on with a "
            "quarter of the limit"
        )


class ReadBudget:
    """One read of one call, in every window that counts it.

    Args:
        user: whose read it is; ``None``: it does not count.
        storage: ``options["rateLimitStorage"]``.
        longest: how many seconds to wait at most; ``None``: until the deadline.
        fallback: whether to go on with a part of the limit if the storage is unreachable.
        pace: the exchange's own, slower limit, and its window.
        waiting: how to wait.

    Raises:
        NotSupported: the storage is unknown.
    """

    def __init__(
        self,
        user: str | None,
        storage: str,
        *,
        longest: float | None,
        fallback: bool,
        pace: tuple[MemoryWindows, Limit] | None,
        waiting: Waiting,
    ) -> None:
        self._longest = longest
        self._in_memory: list[_MemoryRead] = []
        self._all_reads: list[_MemoryRead] = []
        self._on_redis: _RedisRead | None = None
        if user is None:
            return
        if pace is not None:
            self._in_memory.append(_MemoryRead(pace[0], user, pace[1], waiting))
        self._in_memory.append(_MemoryRead(SHARED_WINDOWS, user, VENUE_LIMIT, waiting))
        self._all_reads += self._in_memory
        if storage != MEMORY:
            instead = None
            if fallback:
                share = VENUE_LIMIT._replace(requests=VENUE_LIMIT.requests // FALLBACK_SHARE)
                instead = _MemoryRead(SHARED_WINDOWS, f"{user} without Redis", share, waiting)
                self._all_reads.append(instead)
            self._on_redis = _RedisRead(redis_windows(storage, os.getpid()), user, instead, waiting)

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
        """Count the read right before it is written; a repeated call counts it again.

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

    def settle(self, *, written: bool = True) -> None:
        """Confirm that the read was written, or give it back; a repeated call does nothing."""
        for read in self._all_reads:
            read.settle(written=written)

    async def follow(self, headers: Mapping[str, str], deadline: float) -> None:
        """Count reads by others, which the venue's header ``ratelimit-remaining`` reveals."""
        text = headers.get("ratelimit-remaining", "")
        if self._in_memory and text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS:
            self._in_memory[-1].spend(int(text))
            if self._on_redis is not None:
                await self._on_redis.spend(int(text), deadline)

    def _latest(self, deadline: float) -> float:
        if self._longest is None:
            return deadline
        return min(deadline, time.monotonic() + self._longest)


def _used_up() -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the limit of {READ_LIMIT.requests} reads in {READ_LIMIT.seconds} s is reached, and the "
        "timeout ends before the next one; read less often, or raise timeout"
    )


@lru_cache(maxsize=4096)
def _name_of(api_key: str) -> str:
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
