"""Decides after a failed try: wait and try again, use the venue's clock, or give up."""

import random
import time
from collections.abc import Callable
from typing import Final

from ccxt.base.errors import BaseError, RateLimitExceeded

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.venue import READ_LIMIT

DEFAULT_RETRIES: Final = 2
CLOCK_OFF_MS: Final = 2000
"""A smaller difference between the clocks is not the reason for a refused time."""

_FIRST_BACKOFF: Final = 0.2
_LAST_BACKOFF: Final = 5.0
_MOST_DOUBLINGS: Final = 32


def backoff(failures: int, first: float = _FIRST_BACKOFF) -> float:
    """Seconds to wait after a number of failures in a row: doubling, up to 5 s.

    Args:
        failures: the number of failures, at least 1.
        first: the longest wait after the first failure.
    """
    ceiling = min(first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), _LAST_BACKOFF)
    # Half of it is random, so that many clients do not return at the same moment.
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it


def clock_text(ahead_ms: float) -> str:
    """The log message when the venue's clock is used: says by how much ours is off."""
    side = "ahead" if ahead_ms > 0 else "behind"
    return f"using the venue's clock: ours is {abs(ahead_ms) / 1000:.1f} s {side}"


class Retries:
    """The retries of one call, before one deadline. A read is safe to repeat.

    Args:
        deadline: on :func:`time.monotonic`'s clock.
        retries: how many are allowed.
        use_clock: called with the venue's time (ms UTC) if the venue refused ours; returns how many
            ms ours was ahead.
        log: called with a log line for each retry.
    """

    def __init__(
        self,
        deadline: float,
        retries: int,
        *,
        use_clock: Callable[[int], int],
        log: Callable[[str], None],
    ) -> None:
        self._deadline = deadline
        self._retries = retries
        self._made = 0
        self._tries = 1
        self._use_clock: Callable[[int], int] | None = use_clock
        self._log = log

    def after(self, failure: TransientError) -> float:
        """Seconds to wait before the next try.

        Raises:
            BaseError: no retry or no time is left.
        """
        if failure.venue_time is not None:
            if self._use_clock is None:  # only once per call
                raise failure.error
            ahead, self._use_clock = self._use_clock(failure.venue_time), None
            if abs(ahead) <= CLOCK_OFF_MS:
                raise failure.error
            self._tries += 1
            self._log(f"{clock_text(ahead)}: {failure}")
            return 0.0
        wait = self._wait(failure)
        if self._made >= self._retries or time.monotonic() + wait >= self._deadline:
            raise failure.error
        self._made += 1
        self._tries += 1
        self._log(f"trying again in {wait:.2f} s ({self._made} of {self._retries}): {failure}")
        return wait

    def final_error(self, error: BaseError) -> BaseError:
        """The final error, with the number of tries if there were several."""
        return error if self._tries == 1 else type(error)(f"{error} ({self._tries} tries)")

    def _wait(self, failure: TransientError) -> float:
        if failure.retry_after is not None:
            return failure.retry_after
        if isinstance(failure.error, RateLimitExceeded):
            return float(READ_LIMIT.seconds)
        return backoff(self._made + 1)
