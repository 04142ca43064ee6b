"""Connections for threads: blocking sockets on which every wait ends at the deadline."""

import contextlib
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.background import seconds_left
from sunx_adapter.wire.connections import CHUNK, Connections, Pool, Socket
from sunx_adapter.wire.dial import dial_in_background
from sunx_adapter.wire.route import Origin

Result = TypeVar("Result")


class ThreadSocket(Socket):
    """A TCP connection. One thread uses it at a time; any may abort it."""

    _aborted = False

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self.connected.settimeout(seconds_left(self.deadline))
        self.connected.sendall(data)

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the peer has closed."""
        self.connected.settimeout(seconds_left(self.deadline))
        data = self.connected.recv(CHUNK)
        if not data and self._aborted:
            raise WireError("closed")
        return data

    def abort(self) -> None:
        """Make the present use of the connection fail; its user then closes the connection."""
        self._aborted = True
        # close() would not wake a thread that reads from the socket; shutdown() does.
        with contextlib.suppress(OSError):
            self.connected.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()


class ThreadConnections(Connections):
    """Connections that threads share. A forked child gets new ones."""

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[int, Pool] = {}

    def pool(self) -> Pool:
        """This process's pool."""
        process = os.getpid()
        if (pool := self._pools.get(process)) is None:
            for inherited in [each for each in list(self._pools) if each != process]:
                self._pools.pop(inherited, Pool()).forget()  # another thread may have popped it
            pool = self._pools.setdefault(process, Pool())
        return pool

    async def dial(self, origin: Origin, deadline: float) -> ThreadSocket:
        """Connect to an origin, without TLS."""
        dialling = dial_in_background(origin, deadline)
        self.pool().add(dialling)
        if self.closed:
            dialling.abort()
        return ThreadSocket(dialling.wait(deadline), deadline)

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        self.closed = True
        self.pool().abort()


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise AssertionError("the coroutine suspended")
