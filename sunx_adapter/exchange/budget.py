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
import itertools
import os
import time
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from ccxt.base.errors import NetworkError, RateLimitExceeded

from sunx_adapter.exchange.redis_windows import MAX_LATE_SECONDS, RedisWindows, redis_windows
from sunx_adapter.exchange.waiting import Waiting
from sunx_adapter.venue import READ_LIMIT
from sunx_adapter.wire.forks import FORK_LOCK

MEMORY: Final = "memory://"
FALLBACK_SHARE: Final = 4
"""With ``options["rateLimitFallback"] = "memory"`` a process keeps to a quarter of the limit."""

SLACK_SECONDS: Final = 0.2
"""Added to the window, because requests take different times to reach the venue."""

_FRESH_SECONDS: Final = 0.1
"""After this time, a read that Redis granted must be requested again."""

_UNREACHABLE_SECONDS: Final = 5.0
_FAIR_SECONDS: Final = 1.0
"""If Redis had less time to answer, its silence is no sign that it is unreachable."""

_FEW_USERS: Final = 64
_KEPT_SECONDS: Final = 60.0
"""No window is longer, except one for a single read in ``rateLimit``."""

_TICK: Final = 1e-6
"""After a wait, the oldest read must have left the window, in spite of rounding."""

_MAX_DIGITS: Final = 8


class Limit(NamedTuple):
    """At most ``requests`` in any ``seconds``; ``text`` says so in messages."""

    requests: int
    seconds: float
    text: str


VENUE_LIMIT: Final = Limit(
    READ_LIMIT.requests,
    READ_LIMIT.seconds + SLACK_SECONDS,
    f"{READ_LIMIT.requests} reads in {READ_LIMIT.seconds} s",
)


class _Window:
    """The reads of one user.

    Attributes:
        reserved: the times that waiting calls have reserved, each with the number of the read.
        sending: the numbers of the reads that are counted and whose write is not confirmed.
        written: when writes were confirmed.
        uid: the UID of an API key, if known.
    """

    __slots__ = ("reserved", "sending", "uid", "written")

    def __init__(self) -> None:
        self.reserved: list[tuple[float, int]] = []
        self.sending: set[int] = set()
        self.written: list[float] = []
        self.uid: str | None = None

    def forget_written(self, until: float) -> None:
        """Drop the reads that were written until then."""
        for moment in self.written[: bisect_right(self.written, until)]:
            # Each by its value: a signal handler may drop the same ones meanwhile.
            with contextlib.suppress(ValueError):
                self.written.remove(moment)

    def unreserve(self, place: tuple[float, int]) -> None:
        """Give up a reservation, if it is still there."""
        with contextlib.suppress(ValueError):
            self.reserved.remove(place)

    def is_empty(self) -> bool:
        """Whether it has no read that counts, and no UID to remember."""
        return not (self.reserved or self.sending or self.written or self.uid)


class MemoryWindows:
    """Windows in this process by user, by :func:`time.monotonic`, which never jumps.

    Attributes:
        numbers: gives each read a number of its own.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.reset()

    def reset(self) -> None:
        """Forget all reads. For tests only: the venue still counts them."""
        self._windows: dict[str, _Window] = {}
        self._process = os.getpid()
        self._clean_up_at = _FEW_USERS

    def users_of(self, venue: str, api_key: str, uid: str | None) -> list[str]:
        """For whom a read counts: for its API key and, if known, for the UID of the key.

        Args:
            venue: the exchange's id.
            api_key: of the request; the result does not reveal it.
            uid: of the key, if the caller knows it. It is remembered for other callers.
        """
        key = f"{venue}:{_name_of(api_key)}"
        with FORK_LOCK:
            window = self.window(key)
            window.uid = uid = uid or window.uid
        return [key, f"{venue}:{uid}"] if uid else [key]

    def window(self, user: str) -> _Window:
        """A user's window, which the caller uses while it holds ``FORK_LOCK``."""
        if self._process != os.getpid():
            self._process = os.getpid()
            for inherited in self._windows.values():  # from calls of the parent's threads
                inherited.reserved.clear()
                inherited.sending.clear()
        window = self._windows.get(user)
        if window is None:
            if len(self._windows) >= self._clean_up_at:
                for other, used in list(self._windows.items()):
                    used.forget_written(time.monotonic() - _KEPT_SECONDS)
                    if used.is_empty():
                        self._windows.pop(other, None)
                self._clean_up_at = max(2 * len(self._windows), _FEW_USERS)
            window = self._windows[user] = _Window()
        return window


SHARED_WINDOWS: Final = MemoryWindows()
"""The windows that all exchanges of this process share."""


class _MemoryRead:
    """One read in a window of this process, at a moment that is reserved first."""

    _place: tuple[float, int] | None = None
    _counted = False

    def __init__(self, windows: MemoryWindows, user: str, limit: Limit, waiting: Waiting) -> None:
        self._windows, self._user, self._limit = windows, user, limit
        self._waiting = waiting
        self._number = next(windows.numbers)

    def __del__(self) -> None:
        # Of a call that was interrupted even while it settled the read.
        self.settle(written=self._counted)

    async def reserve(self, deadline: float) -> None:
        """Reserve the first free moment, and wait for it."""
        requests, seconds, _ = self._limit
        with FORK_LOCK:
            window, moment = self._now()
            latest = [reserved for reserved, _ in window.reserved[-requests:]]
            taken = sorted(window.written + [moment] * len(window.sending) + latest)
            if len(taken) >= requests:
                moment = max(moment, taken[-requests] + seconds)
            self._check(moment, deadline)
            self._place = moment, self._number
            insort(window.reserved, self._place)
        await self.wait_until(moment, deadline)

    async def take(self, deadline: float) -> None:
        """Count the read as soon as there is room, unless it is counted; see :meth:`settle`."""
        if self._place is None:
            await self.reserve(deadline)
        while full_until := self._count():
            await self.wait_until(full_until, deadline)

    def _count(self) -> float | None:
        """Count the read; returns until when to wait if there is no room."""
        requests, seconds, _ = self._limit
        with FORK_LOCK:
            if self._counted or self._place is None:
                return None
            window, now = self._now()
            # Earlier reservations have their share; later ones do not matter.
            earlier = bisect_left(window.reserved, self._place)
            # Counted first, then judged: a signal handler may count a read in between.
            window.sending.add(self._number)
            before = window.written + [now] * (len(window.sending) - 1 + earlier)
            if (excess := len(before) + 1 - requests) > 0:
                window.sending.discard(self._number)
                return before[excess - 1] + seconds + _TICK
            self._counted = True
            window.unreserve(self._place)
            return None

    def settle(self, *, written: bool) -> None:
        """Confirm that the read was written, or give it back; a repeated call does nothing."""
        if self._place is None:
            return
        with FORK_LOCK:
            window, now = self._now()
            if written:
                window.written.append(now)
            window.sending.discard(self._number)
            window.unreserve(self._place)
            self._place = None  # last: until here, an interrupted call settles again

    def spend(self, remaining: int) -> None:
        """Leave at most ``remaining`` reads."""
        with FORK_LOCK:
            window, now = self._now()
            used = len(window.written) + len(window.sending) + len(window.reserved)
            window.written += [now] * (self._limit.requests - used - remaining)

    async def wait_until(self, moment: float, deadline: float) -> None:
        """Wait; raises RateLimitExceeded if the moment is after the deadline."""
        self._check(moment, deadline)
        while (wait := moment - time.monotonic()) > 0:
            await self._waiting.pause(wait)

    def _check(self, moment: float, deadline: float) -> None:
        if moment > deadline:
            raise _reached(self._limit)

    def _now(self) -> tuple[_Window, float]:
        now, window = time.monotonic(), self._windows.window(self._user)
        window.forget_written(now - self._limit.seconds)
        return window, now


class _RedisRead:
    """One read in a window on Redis, or in those of ``fallback`` if Redis is unreachable."""

    def __init__(
        self, windows: RedisWindows, user: str, fallback: Sequence[_MemoryRead], waiting: Waiting
    ) -> None:
        self._windows, self._user, self._fallback = windows, user, fallback
        self._waiting = waiting
        self._fresh_until = 0.0
        self._name = uuid.uuid4().hex

    @property
    def is_fresh(self) -> bool:
        """Whether the granted read may still be written."""
        return time.monotonic() <= self._fresh_until

    async def take(self, latest: float, deadline: float) -> None:
        """Request a read from Redis, unless one was granted just before.

        Args:
            latest: until when to wait for a read.
            deadline: until when to wait for Redis.
        """
        windows = self._windows
        while not self.is_fresh:
            asked, late = time.monotonic(), windows.late
            try:
                wait = await self._ask(deadline, late)
            except NetworkError:
                if not self._fallback:
                    raise
                for read in self._fallback:
                    # Reads granted to other processes just before may still be on their way.
                    await read.wait_until(windows.answered + VENUE_LIMIT.seconds, latest)
                    await read.take(latest)
                self._fresh_until = time.monotonic() + _FRESH_SECONDS
                return
            if wait:
                if asked + wait > latest:
                    raise _reached(VENUE_LIMIT)
                await self._waiting.pause(wait)
                continue
            took = time.monotonic() - asked
            windows.late = min(2 * took, MAX_LATE_SECONDS) if took > _FRESH_SECONDS else 0.0
            self._fresh_until = asked + late + _FRESH_SECONDS

    async def spend(self, remaining: int, deadline: float) -> None:
        """Leave at most ``remaining`` reads."""
        windows, now = self._windows, time.monotonic()
        if now >= windows.unreachable_until:
            # Only briefly: the answer has arrived, and the next one reports the limit again.
            soon, name = min(deadline, now + _FRESH_SECONDS), f"{self._name}/others"
            with contextlib.suppress(Exception):
                await self._waiting.background(
                    lambda: windows.ask(self._user, name, VENUE_LIMIT[:2], 0.0, remaining), soon
                )

    async def _ask(self, deadline: float, late: float) -> float:
        windows, now, reason = self._windows, time.monotonic(), "it did not answer a moment ago"
        # The fallback needs some of the time.
        until = now + (deadline - now) / 4 if self._fallback else deadline
        if not self._fallback or now >= windows.unreachable_until:
            try:
                return await self._waiting.background(
                    lambda: windows.ask(self._user, self._name, VENUE_LIMIT[:2], late), until
                )
            except ConnectionAbortedError:  # the exchange was closed
                raise
            except Exception as error:
                if isinstance(error, TimeoutError) and time.monotonic() >= deadline:
                    raise
                if not isinstance(error, TimeoutError) or until - now >= _FAIR_SECONDS:
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
        users: for whom the read counts, see :meth:`MemoryWindows.users_of`; none: it does not.
        storage: ``options["rateLimitStorage"]``.
        longest: how many seconds to wait for the read at most; ``None``: until the deadline.
        fallback: whether to go on with a part of the limit if the storage is unreachable.
        pace: the exchange's own, slower limit, and its window.
        waiting: how to wait.

    Raises:
        NotSupported: the storage is unknown.
    """

    def __init__(
        self,
        users: Sequence[str],
        storage: str,
        *,
        longest: float | None,
        fallback: bool,
        pace: tuple[MemoryWindows, Limit] | None,
        waiting: Waiting,
    ) -> None:
        self._longest = longest
        self._pace = None if pace is None else _MemoryRead(pace[0], "", pace[1], waiting)
        self._in_memory = [_MemoryRead(SHARED_WINDOWS, u, VENUE_LIMIT, waiting) for u in users]
        self._instead: list[_MemoryRead] = []
        self._on_redis: _RedisRead | None = None
        if storage != MEMORY and users:
            if fallback:
                share = VENUE_LIMIT._replace(requests=VENUE_LIMIT.requests // FALLBACK_SHARE)
                self._instead = [
                    _MemoryRead(SHARED_WINDOWS, f"{user} without Redis", share, waiting)
                    for user in users
                ]
            windows = redis_windows(storage, os.getpid())
            self._on_redis = _RedisRead(windows, users[-1], self._instead, waiting)

    async def reserve(self, deadline: float) -> None:
        """Reserve a moment and wait for it, before connecting.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.

        Raises:
            RateLimitExceeded: no read is left before the deadline.
        """
        with self._latest(deadline) as latest:
            if self._pace is not None:
                await self._pace.take(latest)
                self._pace.settle(written=True)
            for read in self._in_memory:
                await read.reserve(latest)

    async def take(self, deadline: float) -> None:
        """Count the read, which is to be written next; a repeated call only looks at Redis again.

        Raises:
            RateLimitExceeded: no read is left before the deadline.
            NetworkError: the storage is unreachable.
            TimeoutError: it did not answer before the deadline.
        """
        with self._latest(deadline) as latest:
            for read in self._in_memory:
                await read.take(latest)
            if self._on_redis is not None:  # last, because what it grants must be written soon
                await self._on_redis.take(latest, deadline)

    def settle(self, *, written: bool = True) -> None:
        """Confirm that the read was written, or give it back; a repeated call does nothing."""
        for read in (*self._in_memory, *self._instead):
            read.settle(written=written)

    async def follow(self, headers: Mapping[str, str], deadline: float) -> None:
        """Count reads by others, which the venue's header ``ratelimit-remaining`` reveals."""
        text = headers.get("ratelimit-remaining", "")
        if self._in_memory and text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS:
            for read in self._in_memory:
                read.spend(int(text))
            if self._on_redis is not None:
                await self._on_redis.spend(int(text), deadline)

    @contextlib.contextmanager
    def _latest(self, deadline: float) -> Iterator[float]:
        """Until when to wait; the time spent inside is not left for the next wait."""
        began, longest = time.monotonic(), self._longest
        if longest is None:
            yield deadline
        else:
            yield min(deadline, began + longest)
            self._longest = longest - (time.monotonic() - began)


def _reached(limit: Limit) -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the limit of {limit.text} is reached, and timeout (or options['rateLimitTimeout']) ends "
        "before the next read; read less often, or raise it"
    )


@lru_cache(maxsize=4096)
def _name_of(api_key: str) -> str:
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
