"""How late a sandbox notices requests: on a busy machine, long after they have arrived."""

import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from typing import Final, Self
from urllib.parse import urlsplit

from sunx_adapter import Sandbox

_STEP: Final = 0.02


class Lateness:
    """Measures the lateness within a ``with`` block, by repeated requests for the sandbox's time.

    A late sandbox may count the requests of a longer time in one window. So there were surely too
    many requests only if they are too many for a window that is shorter by the lateness.

    Attributes:
        seconds: the longest time that the sandbox took to answer.
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
        """The codes that reads may get: a late venue may refuse a read by mistake."""
        return {200} if self.seconds < 0.1 else {200, 1032}

    def _measure(self) -> None:
        with closing(HTTPConnection(urlsplit(self._sandbox.url).netloc)) as connection:
            while not self._ended.wait(_STEP):
                before = time.monotonic()
                connection.request("GET", "/api/v1/timestamp")
                connection.getresponse().read()
                self.seconds = max(self.seconds, time.monotonic() - before)
