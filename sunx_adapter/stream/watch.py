"""The stream of one exchange, made when it is first asked for."""

import asyncio
from collections.abc import Callable
from typing import Any

from ccxt.base.errors import BadResponse

from sunx_adapter.protocol.account import AccountAnswer
from sunx_adapter.stream.account import AccountStream, StreamSource, StreamStatus
from sunx_adapter.stream.cursor import Cursor, Cursors


class BalanceWatch:
    """An exchange's stream.

    Args:
        source: whose keys, addresses, clock and options count, as they are at each connection.
    """

    def __init__(self, source: StreamSource) -> None:
        self._source = source
        self._cursors = Cursors()
        self._stream: AccountStream | None = None
        self._made_for: object = None

    async def next(
        self, mapped: Callable[[AccountAnswer], dict[str, Any]], cursor: Cursor | None = None
    ) -> dict[str, Any]:
        """The next balance.

        Args:
            mapped: makes a balance of an account.
            cursor: whose next one; the current task's if ``None``.
        """
        stream = await self._current()
        news = await stream.next(self._cursors.current() if cursor is None else cursor)
        try:
            return mapped(news.answer())
        except BadResponse as error:
            if news.pushed:
                stream.doubt(error)
            raise

    def status(self) -> StreamStatus:
        """How the connection does."""
        return StreamStatus() if self._stream is None else self._stream.status()

    async def close(self) -> None:
        """End the stream; when this returns, nothing of it is left."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.loop is asyncio.get_running_loop():
            await stream.close()

    async def _current(self) -> AccountStream:
        loop, made_for = asyncio.get_running_loop(), self._source.identity()
        old = self._stream
        if old is not None and made_for == self._made_for and old.serves(loop):
            return old
        # Before anything is awaited, so that tasks that come together make one stream.
        self._stream = AccountStream(self._source, self._source.settings())
        self._made_for = made_for
        if old is not None and old.loop is loop:
            await old.close()
        return self._stream
