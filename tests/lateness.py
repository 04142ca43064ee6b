"""How late a sandbox notices requests: on a busy machine, it answers them long after they came."""

import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from typing import Final, Self
from urllib.parse import urlsplit

from sunx_adapter import Sandbox

_STEP: Final = 0.02


class Lateness:
    """Measures while its context lasts, by asking the sandbox for its time again and again.

    A sandbox that notices requests up to this late may count the requests of a longer time in one
    window. So windows that it counts must be shorter by this, to prove that there were too many.

    Attributes:
        seconds: how long the sandbox took at most to tell its time.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.seconds = 0.0
        self._sandbox = sandbox
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
        """The codes that a venue may answer reads with: a late one may refuse one by mistake."""
        return {200} if self.seconds < 0.1 else {200, 1032}

    def _measure(self) -> None:
        with closing(HTTPConnection(urlsplit(self._sandbox.url).netloc)) as connection:
            while not self._ended.wait(_STEP):
                before = time.monotonic()
                connection.request("GET", "/api/v1/timestamp")
                connection.getresponse().read()
                self.seconds = max(self.seconds, time.monotonic() - before)
