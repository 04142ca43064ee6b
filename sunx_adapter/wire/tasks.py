"""Connections for asyncio tasks. The caller enforces the deadline."""

import asyncio
import socket
from typing import Any, Final

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.background import remember_for_loop
from sunx_adapter.wire.connections import Connections, Pool, Socket
from sunx_adapter.wire.dial import dial_in_background
from sunx_adapter.wire.route import Origin

_MAX_UNASKED_BYTES: Final = 262_144
"""The connection is closed if the peer sends more than this while nobody reads."""


class TaskSocket(Socket, asyncio.Protocol):
    """A TCP connection. For TLS, use the layer ``Tls`` above it, not asyncio's.

    Attributes:
        lost: done once the connection has ended.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        super().__init__(connected, deadline)
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._transport: Any = None
        self._received = b""
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    async def send(self, data: bytes) -> None:
        """Send all of it; returns when the system has taken it."""
        if self.lost.done():
            return
        if not self._transport.get_write_buffer_size():
            # Not by the transport: uvloop's writes only at the end of the loop's iteration.
            try:
                sent = self.connected.send(data)
            except BlockingIOError:
                sent = 0
            data = data[sent:]
        if data:
            self._transport.write(data)
            while self._transport.get_write_buffer_size() and not self.lost.done():
                self._drained = self._loop.create_future()
                await self._drained

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the peer has closed."""
        while not self._received:
            if self._failure is not None:
                raise self._failure
            if self.lost.done():
                return b""
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data, self._received = self._received, b""
        return data

    def arrived(self) -> bytes | None:
        """The bytes that have arrived, without waiting; ``None`` if there are none."""
        if self._received:
            data, self._received = self._received, b""
            return data
        if self.lost.done() or self._failure is not None or self._transport.is_closing():
            return b""
        # A busy event loop may not have read from the socket yet.
        return super().arrived()

    def abort(self) -> None:
        """Make the present use of the connection fail."""
        self._failure = self._failure or WireError("closed")
        self._transport.abort()
        self._wake()

    close = abort

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- called by asyncio ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = transport
        self._transport.set_write_buffer_limits(high=0)  # resume_writing() once it is empty

    def resume_writing(self) -> None:
        """The system has taken everything."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        self._received += data
        if self._waiter is None and len(self._received) > _MAX_UNASKED_BYTES:
            self.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._failure = self._failure or exc
        if not self.lost.done():
            self.lost.set_result(None)
        self.resume_writing()
        self._wake()


class TaskConnections(Connections):
    """Connections that tasks share; each event loop has its own."""

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}

    def pool(self) -> Pool:
        """This event loop's pool."""
        loop = asyncio.get_running_loop()
        return self._pools.get(loop) or remember_for_loop(self._pools, loop, Pool())

    async def turn(self) -> None:
        """Let the other tasks that are ready get to this point, too.

        Then they write one right after the other. A single write between two long calculations
        wakes the network or the peer again, which takes up to a third of a call's time.
        """
        await asyncio.sleep(0)

    async def dial(self, origin: Origin, deadline: float) -> TaskSocket:
        """Connect to an origin, without TLS."""
        connected = await dial_in_background(origin, deadline).wait_async()
        # From here on asyncio closes the socket, even if this call is cancelled.
        loop = asyncio.get_running_loop()
        try:
            _, tcp = await loop.create_connection(
                lambda: TaskSocket(connected, deadline), sock=connected
            )
        except BaseException:
            if not isinstance(loop, asyncio.BaseEventLoop):
                connected.detach()  # uvloop has closed it by its number
            raise
        return tcp

    async def aclose(self) -> None:
        """Close this event loop's connections and wait until they are closed."""
        self.closed = True
        if (pool := self._pools.pop(asyncio.get_running_loop(), None)) is not None:
            for tcp in pool.abort():
                await tcp.lost
