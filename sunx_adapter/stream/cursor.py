"""Published accounts, and which caller has seen which: every published account has a number."""

import asyncio
from contextvars import ContextVar
from typing import Any

from sunx_adapter.protocol.account import AccountAnswer, read_account
from sunx_adapter.protocol.document import decode_json


class News:
    """A published account.

    Args:
        answer: the account. Every caller but the first gets a copy decoded anew, so that no caller
            sees what another one does to its ``info``.
        number: larger than those of earlier accounts.
        pushed: whether it came by push, not by REST.
    """

    def __init__(self, answer: AccountAnswer, number: int, *, pushed: bool) -> None:
        self.number, self.pushed = number, pushed
        self._first: AccountAnswer | None = answer
        self._body = answer.document.body

    def answer(self) -> AccountAnswer:
        """The account, for one caller alone."""
        first, self._first = self._first, None
        return first or self.copy()

    def copy(self) -> AccountAnswer:
        """The account, decoded anew."""
        return read_account(decode_json(self._body))


class Cursor:
    """The number of the account that one caller got last."""

    __slots__ = ("seen",)

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen


class Cursors:
    """One cursor per task: the one that calls ``watch_balance()``.

    A new task starts from the cursor of the task that made it. A function that calls
    ``watch_balance()`` may run in a task of its own each time, as in ``asyncio.wait_for``, made by
    a task that never calls itself; so an ended task's cursor also goes to the next new task. A loop
    over either never gets a balance twice.
    """

    def __init__(self) -> None:
        self._of_task: dict[asyncio.Task[Any], Cursor] = {}
        self._free: list[Cursor] = []
        self._inherited: ContextVar[Cursor | None] = ContextVar("cursor", default=None)

    def current(self) -> Cursor:
        """The current task's cursor."""
        task = asyncio.current_task()
        assert task is not None
        cursor = self._of_task.get(task)
        if cursor is None:
            cursor = self._of_task[task] = self._new()
            self._inherited.set(cursor)
            task.add_done_callback(self._release)
        return cursor

    def _new(self) -> Cursor:
        inherited = self._inherited.get() or Cursor()
        if not self._free:
            return Cursor(inherited.seen)
        newest = max(self._free, key=lambda cursor: cursor.seen)
        self._free.remove(newest)
        newest.seen = max(newest.seen, inherited.seen)
        return newest

    def _release(self, task: asyncio.Task[Any]) -> None:
        self._free.append(self._of_task.pop(task))
