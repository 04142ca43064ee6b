"""How a call waits, in threads and in tasks.

Waits are in seconds; deadlines are on :func:`time.monotonic`'s clock.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ccxt.base.errors import ExchangeClosedByUser

from sunx_adapter.wire.background import Background, remember_for_loop

Result = TypeVar("Result")


class ThreadWaiting:
    """Waiting in threads. Every wait ends at its deadline, or when the exchange is closed.

    It uses no lock that a signal handler could find locked: the handler would wait for ever.
    """

    def __init__(self, is_closed: Callable[[], bool]) -> None:
        self._is_closed = is_closed
        # Functions that end the present waits, by process: a forked child has none of them.
        self._ends: defaultdict[int, set[Callable[[], object]]] = defaultdict(set)

    def end(self) -> None:
        """End the present waits, after the exchange was closed."""
        for end in list(self._ends[os.getpid()]):
            end()

    @contextlib.contextmanager
    def _ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        ends = self._ends[os.getpid()]
        ends.add(end)
        try:
            if self._is_closed():
                end()
            yield
        finally:
            ends.discard(end)

    async def pause(self, seconds: float) -> None:
        """Wait; raises ``ExchangeClosedByUser`` as soon as the exchange is closed."""
        # Not a SimpleQueue: on Python 3.11, its get() ignores a timeout that ends during a signal.
        until_closed = threading.Lock()
        until_closed.acquire()

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # it was ended before
                until_closed.release()

        with self._ended_by(end):
            if until_closed.acquire(timeout=seconds):
                raise ExchangeClosedByUser("the exchange was closed during the call")

    async def background(self, work: Callable[[], Result], deadline: float) -> Result:
        """The result of a blocking function.

        Raises:
            TimeoutError: at the deadline.
            ConnectionAbortedError: the exchange was closed.
            Exception: the function's own exception.
        """
        working = Background(work)
        with self._ended_by(working.abort):
            return working.wait(deadline)

    async def within(self, deadline: float, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine; raises TimeoutError at the deadline."""
        result = await work  # every wait in it ends at the deadline
        if time.monotonic() > deadline:  # decoding takes time too
            raise TimeoutError
        return result


class _TimedCall:
    """A call and its deadline, on the event loop's clock."""

    __slots__ = ("cancelling", "expired", "moment", "task")

    def __init__(self, task: asyncio.Task[Any], moment: float) -> None:
        self.task, self.moment = task, moment
        self.cancelling = task.cancelling()
        self.expired = False


class _LoopDeadlines:
    """The calls under way in one event loop, and one timer for all their deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls: set[_TimedCall] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: _TimedCall) -> None:
        """End this call at its deadline."""
        self.calls.add(call)
        if self._timer is not None and call.moment < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(call.moment, self._expire)

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        for call in [call for call in self.calls if call.moment <= now]:
            self.calls.discard(call)
            call.expired = True
            call.task.cancel()
        if self.calls:
            first = min(call.moment for call in self.calls)
            self._timer = self._loop.call_at(first, self._expire)


class TaskWaiting:
    """Waiting in tasks, which closing the exchange cancels.

    Deadlines work as in :func:`asyncio.timeout`, but share one timer: with many calls under way, a
    timer for each takes a sixth of a call's time.
    """

    def __init__(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, _LoopDeadlines] = {}

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def background(self, work: Callable[[], Result], deadline: float) -> Result:
        """The result of a blocking function; raises TimeoutError at the deadline."""
        return await self.within(deadline, Background(work).wait_async())

    async def within(self, deadline: float, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine; raises TimeoutError at the deadline."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        if time.monotonic() > deadline:
            work.close()
            raise TimeoutError
        deadlines = self._loops.get(loop) or remember_for_loop(
            self._loops, loop, _LoopDeadlines(loop)
        )
        call = _TimedCall(task, loop.time() + deadline - time.monotonic())
        deadlines.add(call)
        try:
            result = await work
        except asyncio.CancelledError:
            # As asyncio.timeout(): unless the task was also cancelled by others.
            if call.expired and task.uncancel() <= call.cancelling:
                raise TimeoutError from None
            raise
        finally:
            deadlines.calls.discard(call)
        if loop.time() > call.moment:  # decoding takes time too
            raise TimeoutError
        return result


Waiting = ThreadWaiting | TaskWaiting
