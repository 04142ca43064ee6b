"""How a call waits: everything in which threads and tasks differ."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ccxt.base.errors import ExchangeClosedByUser

from sunx_adapter.wire.background import Background, for_loop

Result = TypeVar("Result")


class ThreadWaiting:
    """Waiting in threads. Every wait ends at its deadline, or when the exchange is closed."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._closing = threading.Event()
        self._working: set[Background[Any]] = set()

    @property
    def closing(self) -> threading.Event:
        """Set once the exchange is closed.

        A forked child gets its own: a thread of the parent may hold the lock inside this one.
        """
        if self._process != os.getpid():
            self._closing, self._working = threading.Event(), set()
            self._process = os.getpid()  # last: another thread may look
        return self._closing

    def close(self) -> None:
        """End all waits."""
        self.closing.set()
        for working in list(self._working):
            working.abort()

    async def pause(self, seconds: float) -> None:
        """Wait; raises ``ExchangeClosedByUser`` if the exchange is closed meanwhile."""
        if self.closing.wait(seconds):
            raise ExchangeClosedByUser("the exchange was closed during the call")

    async def background(self, work: Callable[[], Result], deadline: float) -> Result:
        """The result of a blocking function; raises TimeoutError at the deadline."""
        working = Background(work)
        self._working.add(working)
        try:
            if self.closing.is_set():
                working.abort()
            return working.wait(deadline)
        finally:
            self._working.discard(working)

    async def within(self, deadline: float, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine; raises TimeoutError at the deadline."""
        result = await work  # every wait in it ends at the deadline
        if time.monotonic() > deadline:  # decoding takes time too
            raise TimeoutError
        return result


class _TimedCall:
    """A call and its deadline, on the event loop's clock."""

    __slots__ = ("cancelling", "moment", "passed", "task")

    def __init__(self, task: asyncio.Task[Any], moment: float) -> None:
        self.task, self.moment = task, moment
        self.cancelling = task.cancelling()
        self.passed = False


class _LoopDeadlines:
    """The calls under way in one event loop, and one timer for all their deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls: set[_TimedCall] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: _TimedCall) -> None:
        """End this call at its deadline."""
        self.calls.add(call)
        if self._timer is None or call.moment < self._timer.when():
            self._look()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now, self._timer = self._loop.time(), None
        for call in [call for call in self.calls if call.moment <= now]:
            self.calls.discard(call)
            call.passed = True
            call.task.cancel()
        if self.calls:
            first = min(call.moment for call in self.calls)
            self._timer = self._loop.call_at(first, self._look)


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
        deadlines = self._loops.get(loop) or for_loop(self._loops, loop, _LoopDeadlines(loop))
        call = _TimedCall(task, loop.time() + deadline - time.monotonic())
        deadlines.add(call)
        try:
            result = await work
        except asyncio.CancelledError:
            # As asyncio.timeout(): unless the task was also cancelled by others.
            if call.passed and task.uncancel() <= call.cancelling:
                raise TimeoutError from None
            raise
        finally:
            deadlines.calls.discard(call)
        if loop.time() > call.moment:  # decoding takes time too
            raise TimeoutError
        return result


Waiting = ThreadWaiting | TaskWaiting
