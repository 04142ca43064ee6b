"""Runs blocking work in its own thread, for callers with a deadline.

Neither the system's resolver nor a Redis client can be interrupted. If one of them hangs, it must
not block an event loop's few threads.
"""

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
        self._future: Future[Result] = Future()
        self._discard = discard
        threading.Thread(
            target=self._run, args=(work,), name="sunx-adapter-background", daemon=True
        ).start()

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised in the waiting call
            if self._future.set_running_or_notify_cancel():
                self._future.set_exception(error)
            return
        if self._future.set_running_or_notify_cancel():
            self._future.set_result(result)
        else:
            self._discard(result)

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
            return self._future.result(max(deadline - time.monotonic(), 0))
        except CancelledError:
            raise ConnectionAbortedError("closed") from None
        except BaseException:
            self.abort()
            raise

    async def wait_async(self) -> Result:
        """Wait for the result in a task. The caller enforces the deadline."""
        import asyncio  # noqa: PLC0415 - not needed by threads

        try:
            return await asyncio.wrap_future(self._future)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End the wait; a later result is discarded."""
        if not self._future.cancel():
            self._future.add_done_callback(
                lambda done: done.exception() or self._discard(done.result())
            )

    def close(self) -> None:
        """Nothing to close: a forked child has no such thread."""
