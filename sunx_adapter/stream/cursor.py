"""Published accounts, which are numbered, and cursors: the number that each caller got last."""

import asyncio
from contextvars import ContextVar
from typing import Any

from sunx_adapter.protocol.account import AccountAnswer, read_account
from sunx_adapter.protocol.document import decode_json


class PublishedAccount:
    """A published account.

    Args:
        answer: the account. Every caller except the first gets a new copy, so that a change to one
            caller's ``info`` does not affect the others.
        number: larger than the numbers of earlier accounts.
        pushed: whether the account was pushed, not read over REST.
    """

    def __init__(self, answer: AccountAnswer, number: int, *, pushed: bool) -> None:
        self.number, self.pushed = number, pushed
        self._first: AccountAnswer | None = answer
        self._body = answer.document.body

    def answer(self) -> AccountAnswer:
        """The account, as an object that no other caller gets."""
        first, self._first = self._first, None
        return first or self.copy()

    def copy(self) -> AccountAnswer:
        """A new copy of the account."""
        return read_account(decode_json(self._body))


class Cursor:
    """The number of the account that one caller got last."""

    __slots__ = ("seen",)

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen


class Cursors:
    """One cursor for each task that calls ``watch_balance()``.

    A new task starts from the cursor of the task that made it. But a loop may also make a new task
    for each call (as ``asyncio.wait_for`` does) without ever calling ``watch_balance()`` itself.
    Therefore a new task also takes over the cursor of an ended task. So neither kind of loop gets a
    balance twice.
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
