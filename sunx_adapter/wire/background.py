"""Runs blocking work in its own thread, for callers with a deadline.

Neither the system's resolver nor a Redis client can be interrupted. If one of them hangs, it must
not block an event loop's few threads.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

Result = TypeVar("Result")


def seconds_left(deadline: float) -> float:
    """Seconds until a deadline on :func:`time.monotonic`'s clock.

    Raises:
        TimeoutError: the deadline has passed.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def remember_for_loop(
    by_loop: "dict[AbstractEventLoop, Result]", loop: "AbstractEventLoop", new: Result
) -> Result:
    """Store an event loop's value, and drop the values of closed loops; returns the value."""
    # One by one: another thread may store its own loop's value meanwhile.
    for ended in [each for each in list(by_loop) if each.is_closed()]:
        by_loop.pop(ended, None)
    by_loop[loop] = new
    return new


class Background(Generic[Result]):
    """A function that runs in a thread, and its result.

    Args:
        work: the function; it may block.
        discard: called with a result that is too late, such as an open socket.
    """

    def __init__(
        self, work: Callable[[], Result], discard: Callable[[Result], object] = lambda _: None
    ) -> None:
        self._future: Future[None] = Future()
        self._results: list[Result] = []  # whoever removes the result has it alone
        self._discard = discard
        threading.Thread(
            target=self._run, args=(work,), name="sunx-adapter-background", daemon=True
        ).start()

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised in the waiting call
            if self._future.set_running_or_notify_cancel():
                self._future.set_exception(error)
            return
        if self._future.set_running_or_notify_cancel():
            self._future.set_result(None)
        else:
            self._discard_result()

    def wait(self, deadline: float) -> Result:
        """Wait for the result in a thread.

        Args:
            deadline: on :func:`time.monotonic`'s clock.

        Raises:
            TimeoutError: the deadline has passed.
            ConnectionAbortedError: :meth:`abort` was called.
            Exception: the function's own exception.
        """
        try:
            self._future.result(max(deadline - time.monotonic(), 0))
            return self._take()
        except CancelledError:
            raise ConnectionAbortedError("closed") from None
        except BaseException:
            self.abort()
            raise

    async def wait_async(self) -> Result:
        """Wait for the result in a task. The caller enforces the deadline."""
        import asyncio  # noqa: PLC0415 - not needed by threads

        try:
            await asyncio.wrap_future(self._future)
            return self._take()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End the wait; a result that nobody has taken is discarded."""
        if not self._future.cancel():
            self._future.add_done_callback(lambda _: self._discard_result())

    def close(self) -> None:
        """In a forked child, where nobody waits: discard the child's copy of the result."""
        self._discard_result()

    def _take(self) -> Result:
        try:
            return self._results.pop()
        except IndexError:
            raise ConnectionAbortedError("closed") from None

    def _discard_result(self) -> None:
        with contextlib.suppress(IndexError):
            self._discard(self._results.pop())
