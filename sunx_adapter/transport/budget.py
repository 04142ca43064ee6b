"""The read budget: at most so many requests in any window, shared by all who read for one user."""

import asyncio
import time
from functools import cache

import limits
from ccxt.base.errors import NotSupported, RateLimitExceeded
from limits.errors import ConfigurationError
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

MEMORY = "memory://"


@cache
def _limiter(storage_uri: str) -> MovingWindowRateLimiter:
    """One per storage and process: exchanges of one user share their budget."""
    try:
        return MovingWindowRateLimiter(storage_from_string(storage_uri))
    except ConfigurationError as error:
        raise NotSupported(
            f"options['rateLimitStorage']: {error}. Use memory:// or, with the extra "
            "sunx-adapter[redis], redis://host:port/db"
        ) from None


class ReadBudget:
    """A moving window of ``requests`` in ``seconds``, kept by the package ``limits``.

    Args:
        storage_uri: ``"memory://"`` or ``"redis://host:port/db"``.
        key: whose budget it is.
        requests: how many reads fit into the window.
        seconds: the window's length.
    """

    def __init__(self, storage_uri: str, key: str, requests: int, seconds: int) -> None:
        self._limiter = _limiter(storage_uri)
        self._in_memory = isinstance(self._limiter.storage, MemoryStorage)
        self._item = limits.RateLimitItemPerSecond(requests, seconds, namespace="sunx-adapter")
        self._key = key

    def _attempt(self) -> float:
        """Take one read; 0 if there was one, else how many seconds to wait for the next."""
        if self._limiter.hit(self._item, self._key):
            return 0.0
        free_at = self._limiter.get_window_stats(self._item, self._key).reset_time
        return max(free_at - time.time(), 0.001)

    def _check(self, wait: float, deadline: float) -> None:
        if time.monotonic() + wait > deadline:
            raise RateLimitExceeded(
                f"the budget of {self._item.amount} reads in {self._item.multiples} s is used up, "
                "and the timeout ends before there is a next one; read less often, or raise timeout"
            )

    def take(self, deadline: float) -> None:
        """Take one read, waiting for it if need be.

        Args:
            deadline: until when to wait, on :func:`time.monotonic`'s clock.

        Raises:
            RateLimitExceeded: there is none before the deadline.
        """
        while wait := self._attempt():
            self._check(wait, deadline)
            time.sleep(wait)

    async def take_async(self, deadline: float) -> None:
        """The same without blocking the event loop."""
        while wait := (
            self._attempt() if self._in_memory else await asyncio.to_thread(self._attempt)
        ):
            self._check(wait, deadline)
            await asyncio.sleep(wait)
