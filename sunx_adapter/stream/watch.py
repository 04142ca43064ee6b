"""The stream of one exchange, made when it is first used."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from ccxt.base.errors import BadResponse, ExchangeClosedByUser, NotSupported

from sunx_adapter.protocol.account import AccountAnswer
from sunx_adapter.stream import StreamSource, StreamStatus
from sunx_adapter.stream.account import AccountStream
from sunx_adapter.stream.cursor import Cursor, Cursors


class BalanceWatch:
    """An exchange's present stream, which is replaced when keys or addresses change."""

    def __init__(self, source: StreamSource) -> None:
        self._source = source
        self._cursors = Cursors()
        # All streams share the numbers, so that a cursor works with a later stream, too.
        self._numbers = itertools.count(1)
        self._stream: AccountStream | None = None
        # The latest stream, even if it was closed, and its keys and addresses.
        self._latest: AccountStream | None = None
        self._identity: object = None

    async def next(
        self, mapped: Callable[[AccountAnswer], dict[str, Any]], cursor: Cursor | None
    ) -> dict[str, Any]:
        """The next balance.

        Args:
            mapped: converts an account to a balance.
            cursor: the caller's cursor; default: the current task's.
        """
        cursor = cursor or self._cursors.current()
        while True:
            stream = await self._current()
            try:
                account = await stream.next(cursor)
                break
            except ExchangeClosedByUser:
                if self._stream in (None, stream):
                    raise
                # The stream was only replaced: another task has changed the keys or addresses.
        try:
            return mapped(account.answer())
        except BadResponse as error:
            if account.pushed:
                stream.doubt(error)
            raise

    def cursor(self) -> Cursor | None:
        """The current task's cursor; ``None`` outside of tasks."""
        try:
            return self._cursors.current() if asyncio.current_task() else None
        except RuntimeError:  # no event loop runs
            return None

    def status(self) -> StreamStatus:
        """A snapshot of the connection."""
        return StreamStatus() if self._stream is None else self._stream.status()

    async def close(self) -> None:
        """End the stream and wait until its tasks have ended."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.loop is asyncio.get_running_loop():
            await stream.close()

    async def _current(self) -> AccountStream:
        loop, identity = asyncio.get_running_loop(), self._source.identity()
        old = self._stream
        if old is not None and identity == self._identity and old.serves(loop):
            return old
        if old is not None and old.loop is not loop and old.loop.is_running():
            raise NotSupported(
                "another event loop watches with this exchange; make one for each event loop"
            )
        # Before anything is awaited, so that simultaneous calls make one stream.
        before = self._latest if identity == self._identity else None
        self._latest = self._stream = AccountStream(
            self._source, self._source.settings(), self._numbers, before
        )
        self._identity = identity
        if old is not None and old.loop is loop:
            await old.close()
        return self._stream
