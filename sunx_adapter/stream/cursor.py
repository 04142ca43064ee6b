"""Who has seen what: every account that a stream publishes has a number."""

import asyncio
from contextvars import ContextVar
from typing import Any


class Cursor:
    """How far one reader has come: the number of the account that it got last."""

    __slots__ = ("seen",)

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen


class Cursors:
    """The cursors of tasks. A task that calls again has its own.

    A new task goes on where the task that made it was. ``asyncio.wait_for(watch_balance(), …)``
    may make a task of each call, from a task that never calls itself; so a task that has ended also
    leaves its cursor to a new one. A loop over either does not get the same balance twice.
    """

    def __init__(self) -> None:
        self._of_task: dict[asyncio.Task[Any], Cursor] = {}
        self._left: list[Cursor] = []
        self._inherited: ContextVar[Cursor | None] = ContextVar("cursor", default=None)

    @property
    def left(self) -> int:
        """How many cursors are free for a new task."""
        return len(self._left)

    def current(self) -> Cursor:
        """The cursor of the task that asks."""
        task = asyncio.current_task()
        assert task is not None
        cursor = self._of_task.get(task)
        if cursor is None:
            cursor = self._of_task[task] = self._new()
            self._inherited.set(cursor)
            task.add_done_callback(self._leave)
        return cursor

    def _new(self) -> Cursor:
        inherited = self._inherited.get() or Cursor()
        if not self._left:
            return Cursor(inherited.seen)
        newest = max(self._left, key=lambda cursor: cursor.seen)
        self._left.remove(newest)
        newest.seen = max(newest.seen, inherited.seen)
        return newest

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._left.append(self._of_task.pop(task))
