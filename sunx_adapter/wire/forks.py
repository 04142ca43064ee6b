"""A lock for what a fork must not interrupt."""

import os
import threading


class ForkLock:
    """A fork waits until the lock is free, so its child finds nothing locked or half done.

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
