"""The lock for what a fork must not interrupt."""

import os
import threading
from typing import Final


class ForkLock:
    """A fork waits for the lock, so its child finds nothing that another thread left half done.

    The package has only one. With two, a fork could hold the first and wait for the second, whose
    owner is interrupted by a signal handler that waits for the first.

    Attributes:
        lock: this process's lock. It is reentrant: a signal handler may interrupt its owner.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self._acquire, after_in_parent=self._release, after_in_child=self._renew
            )

    def _acquire(self) -> None:
        self.lock.acquire()

    def _release(self) -> None:
        self.lock.release()

    def _renew(self) -> None:
        self.lock = threading.RLock()


FORK_LOCK: Final = ForkLock()
