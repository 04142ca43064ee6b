"""The lock for what a fork must not interrupt."""

import os
import threading
from typing import Final

FORK_LOCK: Final = threading.RLock()
"""A fork waits for the lock, so its child finds nothing that another thread left half done.

It is reentrant: a signal handler may interrupt its owner. The package has only one. With two, a
fork could hold the first and wait for the second, whose owner is interrupted by a signal handler
that waits for the first.
"""

if hasattr(os, "register_at_fork"):  # not on Windows
    # Not functions in Python: Ctrl-C could interrupt one, and leave the lock locked.
    os.register_at_fork(
        before=FORK_LOCK.acquire,
        after_in_parent=FORK_LOCK.release,
        after_in_child=FORK_LOCK.release,
    )
