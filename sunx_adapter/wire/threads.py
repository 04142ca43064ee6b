"""Connections for threads: blocking sockets on which every wait ends at the deadline."""

import contextlib
import os
import socket
import time
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.connections import CHUNK, Connections, Pool
from sunx_adapter.wire.dial import dialled
from sunx_adapter.wire.route import Origin
from sunx_adapter.wire.settings import ConnectionSettings

Result = TypeVar("Result")


class ThreadSocket:
    """A TCP connection. One thread uses it at a time; any may abort it."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self.deadline = deadline
        self._socket = connected
        self._aborted = False

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.settimeout(seconds_left(self.deadline))
        self._socket.sendall(data)

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the peer has closed."""
        self._socket.settimeout(seconds_left(self.deadline))
        data = self._socket.recv(CHUNK)
        if not data and self._aborted:
            raise WireError("closed")
        return data

    def arrived(self) -> bytes | None:
        """The bytes that have arrived, without waiting; ``None`` if there are none."""
        self._socket.settimeout(0)
        try:
            return self._socket.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def now(self) -> float:
        """The time in seconds."""
        return time.monotonic()

    def abort(self) -> None:
        """Make the present use of the connection fail; its user then closes it."""
        self._aborted = True
        # close() would not wake a thread that reads from the socket; shutdown() does.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it. In a forked child, the parent's connection stays open."""
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()


class ThreadConnections(Connections):
    """Connections that threads share. A forked child gets new ones."""

    def __init__(self, settings: ConnectionSettings) -> None:
        super().__init__(settings)
        self._renew()

    def _renew(self) -> None:
        pool, process = Pool(), os.getpid()
        # So that connections are closed too if this object is only garbage-collected.
        weakref.finalize(self, _close_all, pool, process)
        self._all = pool
        self._process = process  # last: another thread may look

    def pool(self) -> Pool:
        """This process's pool."""
        if self._process != os.getpid():
            self._all.forget()
            self._renew()
        return self._all

    async def dial(self, origin: Origin, deadline: float) -> ThreadSocket:
        """Connect to an origin, without TLS."""
        pool, dialling = self.pool(), dialled(origin, deadline)
        pool.add(dialling)
        if self.closed:
            dialling.abort()
        try:
            return ThreadSocket(dialling.wait(deadline), deadline)
        finally:
            pool.discard(dialling)

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        self.closed = True
        _close_all(self._all, self._process)


def _close_all(pool: Pool, process: int) -> None:
    if process == os.getpid():
        pool.abort()


def seconds_left(deadline: float) -> float:
    """Seconds until a deadline on :func:`time.monotonic`'s clock.

    Raises:
        TimeoutError: there are none.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never suspends, so that it ends at its first step."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise AssertionError("the coroutine suspended")
