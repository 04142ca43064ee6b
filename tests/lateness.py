"""How late this process notices things: on a busy machine, a server in it notices requests late."""

import threading
import time
from typing import Final, Self

_STEP: Final = 0.005


class Lateness:
    """Measures while its context lasts.

    A server that notices requests up to this late may count the requests of a longer time in one
    window. So windows that it counts must be shorter by this, to prove that there were too many.

    Attributes:
        seconds: the longest delay so far of a thread that wants to wake every 5 ms.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def codes(self) -> set[int]:
        """The codes that a venue may answer with: a late one may refuse a read by mistake."""
        return {200} if self.seconds < 0.1 else {200, 1032}

    def _measure(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_STEP):
            now = time.monotonic()
            self.seconds = max(self.seconds, now - before - _STEP)
            before = now
