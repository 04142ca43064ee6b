"""Blocking work in a thread of its own, for whoever can wait no longer than a deadline.

Neither the system's resolver nor a Redis client ends when it is told to, and an event loop's own
few threads must not be held up by one that does not answer.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Work that has begun in a thread, and its result.

    Args:
        work: what to do; it may block.
        discard: gets a result that nobody waits for any more, such as an open socket.
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
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            if self._future.set_running_or_notify_cancel():
                self._future.set_exception(error)
            return
        if self._future.set_running_or_notify_cancel():
            self._future.set_result(result)
        else:
            self._discard(result)

    def wait(self, deadline: float) -> Result:
        """The result, for a thread.

        Args:
            deadline: on :func:`time.monotonic`'s clock.

        Raises:
            TimeoutError: there is none by then.
            ConnectionAbortedError: it was aborted meanwhile.
            Exception: whatever the work raised.
        """
        try:
            return self._future.result(max(deadline - time.monotonic(), 0))
        except CancelledError:
            raise ConnectionAbortedError("closed by its owner") from None
        except BaseException:
            self.abort()
            raise

    async def wait_async(self) -> Result:
        """The result, for a task, whose caller keeps time."""
        import asyncio  # noqa: PLC0415 - threads do without

        try:
            return await asyncio.wrap_future(self._future)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Wait no longer: wakes a waiting thread; a later result is discarded."""
        if not self._future.cancel():
            self._future.add_done_callback(self._discard_late)

    def close(self) -> None:
        """Nothing: in the child of a fork the thread does not go on."""

    def _discard_late(self, future: Future[Result]) -> None:
        if future.exception() is None:
            self._discard(future.result())
