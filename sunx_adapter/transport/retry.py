"""What a call does after a failure: wait and try again, correct its clock, or give up."""

import random
import time
from collections.abc import Callable
from typing import Final

from ccxt.base.errors import BaseError, RateLimitExceeded

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.venue import READ_LIMIT

DEFAULT_RETRIES: Final = 2

_FIRST_BACKOFF: Final = 0.2
_LAST_BACKOFF: Final = 5.0
_RIGHT_ENOUGH_MS: Final = 2000
_MOST_DOUBLINGS: Final = 32


def backoff(failures: int, first: float = _FIRST_BACKOFF) -> float:
    """Seconds to wait after so many failures in a row: twice as long each time, up to 5 s.

    Args:
        failures: 1 or more.
        first: the longest wait after the first.
    """
    ceiling = min(first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), _LAST_BACKOFF)
    # Half of it at random, so that many clients of one venue do not come back as one.
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it


class Tries:
    """The tries of one call, all before one deadline. A read is safe to repeat.

    Args:
        deadline: on :func:`time.monotonic`'s clock.
        retries: how many tries there may be after the first.
        corrected: called with the venue's time (ms UTC) if it refused ours as off; tells by how
            many ms the clock was corrected.
        log: where each retry is told of, once, with its reason.
    """

    def __init__(
        self,
        deadline: float,
        retries: int,
        *,
        corrected: Callable[[int], int],
        log: Callable[[str], None],
    ) -> None:
        self.deadline = deadline
        self._left = retries
        self._made = 0
        self._corrected: Callable[[int], int] | None = corrected
        self._log = log

    def after(self, failure: TransientError) -> float:
        """Seconds to wait before the next try.

        Raises:
            BaseError: there is none: no retry is left, or no time.
        """
        self._made += 1
        if failure.venue_time is not None and self._corrected is not None:
            # Once per call: a clock that jumps about must not keep it going round.
            off, self._corrected = self._corrected(failure.venue_time), None
            if abs(off) > _RIGHT_ENOUGH_MS:
                self._log(f"corrected this machine's clock by {-off / 1000:+.1f} s: {failure}")
                return 0.0
        wait = self._wait(failure)
        is_clock = failure.venue_time is not None
        if self._left < 1 or is_clock or time.monotonic() + wait >= self.deadline:
            raise self.given_up(failure.error)
        self._left -= 1
        self._log(f"trying again in {wait:.2f} s ({self._left} tries left): {failure}")
        return wait

    def given_up(self, error: BaseError) -> BaseError:
        """The error, with the number of tries where there were several."""
        return error if self._made < 2 else type(error)(f"{error} ({self._made} tries)")  # noqa: PLR2004

    def _wait(self, failure: TransientError) -> float:
        if failure.wait is not None:
            return failure.wait
        if isinstance(failure.error, RateLimitExceeded):
            return float(READ_LIMIT.seconds)
        return backoff(self._made)
