"""The connection pool and one request over it, written once for threads and for tasks.

The coroutines here suspend only in the methods of a :class:`Socket`. Those of
:mod:`~sunx_adapter.wire.threads` never suspend, so one ``send(None)`` runs a call to its end.

Each request gets its own answer. HTTP/1.1 has no request ids, so a connection is used again only if
nothing but complete answers has arrived on it. This is checked right before the next request is
written. Only the same owner uses a connection again, because a late duplicate looks like an answer.
"""

import contextlib
import math
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakValueDictionary

from sunx_adapter.wire.answer import RawAnswer, WireError
from sunx_adapter.wire.route import (
    GetRequest,
    Handshake,
    Origin,
    ProxyError,
    origin_of,
    proxy_at,
    request_bytes,
)
from sunx_adapter.wire.settings import IDLE_SECONDS, ConnectionSettings

CHUNK: Final = 65_536
_RECORD_HEAD: Final = 5

PoolKey = tuple[Origin, str, ConnectionSettings]
"""A connection's origin, owner and settings."""


class Socket:
    """One TCP connection. Subclasses wait for it in threads or in tasks.

    Attributes:
        connected: the connected socket.
        deadline: when every wait ends, on :func:`time.monotonic`'s clock.
        now: returns the time in seconds, on the event loop's clock if there is one.
    """

    now: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self.connected = connected
        self.deadline = deadline
        self._poll = None
        if hasattr(select, "poll"):  # not on Windows
            self._poll = select.poll()
            self._poll.register(connected, select.POLLIN)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        raise NotImplementedError

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the peer has closed."""
        raise NotImplementedError

    def arrived(self) -> bytes | None:
        """The bytes that have arrived, without waiting; ``None`` if there are none."""
        try:
            if self._poll is not None:
                readable: list[Any] = self._poll.poll(0)
            else:
                readable, _, _ = select.select([self.connected], [], [], 0)
            return self.connected.recv(CHUNK) if readable else None
        except OSError:
            return b""

    def abort(self) -> None:
        """Make the present use of the connection fail; its user then closes the connection."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection at once. In a forked child, the parent's copy stays open."""
        self.connected.close()


class Tls:
    """TLS over a socket, or over another TLS layer. It uses :mod:`ssl` on bytes in memory."""

    def __init__(self, below: "Socket | Tls", context: ssl.SSLContext, host: str) -> None:
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._record = b""  # the part of an incomplete record that has arrived

    async def handshake(self) -> None:
        """Perform the TLS handshake.

        Raises:
            ssl.SSLError: the certificate is not trusted, or the peer does not speak TLS.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush_and_feed()
            else:
                return await self._flush()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self._tls.write(data)
        await self._flush()

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the peer has closed."""
        while (data := self._decrypted()) is None:
            await self._flush_and_feed()
        return data

    def arrived(self) -> bytes | None:
        """The bytes that have arrived, without waiting; ``None`` if there are none.

        Records without data, such as session tickets, do not count unless they are many. A part of
        a record counts: with its rest, it may be an answer.
        """
        length = 0
        try:
            while (data := self._decrypted()) is None and length <= CHUNK:
                if not (encrypted := self._below.arrived()):
                    return b"" if self._record else encrypted
                self._feed(encrypted)
                length += len(encrypted)
        except ssl.SSLError:
            return b""
        return data or b""

    def _decrypted(self) -> bytes | None:
        if not (self._in.pending or self._in.eof or self._tls.pending()):
            return None  # as below, but without an exception, which is slow
        try:
            return self._tls.read(CHUNK)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def _flush_and_feed(self) -> None:
        await self._flush()
        if data := await self._below.receive():
            self._feed(data)
        else:
            self._in.write_eof()

    def _feed(self, encrypted: bytes) -> None:
        self._in.write(encrypted)
        records, end, begin = self._record + encrypted, 0, 0
        while end <= len(records):
            begin = end
            # A record's head ends with the length of the rest of the record (RFC 8446, 5.1).
            length = int.from_bytes(records[begin + _RECORD_HEAD - 2 : begin + _RECORD_HEAD])
            end = begin + _RECORD_HEAD + length
        self._record = records[begin:]

    async def _flush(self) -> None:
        if data := self._out.read():
            await self._below.send(data)


class Connection:
    """One connection to an origin, perhaps through a proxy and TLS."""

    def __init__(self, tcp: Socket) -> None:
        self.tcp = tcp
        self.top: Socket | Tls = tcp
        self._old_at = math.inf

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on; the second time, TLS inside TLS."""
        tls = Tls(self.top, context, host)
        await tls.handshake()
        self.top = tls

    async def negotiate(self, handshake: Handshake) -> None:
        """Make a proxy open a tunnel."""
        text = next(handshake)
        with contextlib.suppress(StopIteration):
            while True:
                if text:
                    await self.top.send(text)
                if not (data := await self.top.receive()):
                    raise ProxyError("the proxy closed the connection")
                text = handshake.send(data)

    async def answer(self, limit: int) -> RawAnswer:
        """Read the whole answer to the request that was written."""
        answer = RawAnswer(limit)
        while not answer.ended:
            data = await self.top.receive()
            answer.feed(data) if data else answer.end()
        return answer

    def mark_idle(self) -> None:
        """Start the idle time."""
        self._old_at = self.tcp.now() + IDLE_SECONDS

    def is_old(self) -> bool:
        """Whether the idle time is so long that the peer may be about to close the connection."""
        return self.tcp.now() > self._old_at

    def is_usable(self) -> bool:
        """Whether it can send a request: it is not old, and no unrequested bytes have arrived."""
        return not self.is_old() and self.top.arrived() is None


class Pool:
    """The connections of one process or event loop.

    It has no lock: each operation on a list or dict is atomic. With a lock, a signal handler that
    closes or uses the exchange would wait for ever if the interrupted code held the lock.
    """

    def __init__(self) -> None:
        # Weak references: closed and abandoned connections need no further handling.
        self._open: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._idle: dict[PoolKey, list[Connection]] = {}

    def add(self, opened: Any) -> None:
        """Remember a socket, or a connection attempt, for :meth:`abort`."""
        self._open[id(opened)] = opened

    def take(self, key: PoolKey) -> Connection | None:
        """Take the most recently used idle connection; then only the caller has it."""
        try:
            connection = self._idle[key].pop()
        except (KeyError, IndexError):
            return None
        if connection.is_old():
            connection.tcp.close()
            return None
        return connection

    def give_back(self, key: PoolKey, connection: Connection) -> None:
        """Keep a connection for its owner's next request."""
        connection.mark_idle()
        self._idle.setdefault(key, []).append(connection)

    def drop_idle(self, *, but: ConnectionSettings | None = None) -> None:
        """Close idle connections that are old or do not have the settings ``but``."""
        for key, kept in list(self._idle.items()):
            for each in list(kept):
                if key[2] != but or each.is_old():
                    with contextlib.suppress(ValueError):  # another thread has just taken it
                        kept.remove(each)
                        each.tcp.close()
            if not kept:
                # If another thread gives one back now, its last reference closes it.
                self._idle.pop(key, None)

    def abort(self) -> list[Any]:
        """Close the idle connections and make uses of the others fail; returns all of them."""
        ended = self._all()
        self.drop_idle()
        for used in ended:
            used.abort()
        return ended

    def forget(self) -> None:
        """Close a forked child's copies; the parent's connections stay open."""
        for inherited in self._all():
            inherited.close()

    def _all(self) -> list[Any]:
        return [opened for each in self._open.valuerefs() if (opened := each()) is not None]


class Connections:
    """Sends requests over kept connections."""

    def __init__(self) -> None:
        self.closed = False

    def pool(self) -> Pool:
        """The pool for the present process or event loop."""
        raise NotImplementedError

    async def turn(self) -> None:
        """Let other tasks run before this call's request is prepared and written."""

    async def dial(self, origin: Origin, deadline: float) -> Socket:
        """Connect to an origin, without TLS."""
        raise NotImplementedError

    async def fetch(
        self,
        address: str,
        owner: str,
        prepare: Callable[[], Awaitable[GetRequest]],
        *,
        settings: ConnectionSettings,
        deadline: float,
        limit: int,
    ) -> RawAnswer:
        """Send a request and read its whole answer.

        Args:
            address: the request's scheme, host and port, or any URL with them.
            owner: the owner of the connections to use.
            prepare: makes the request once there is a connection; called again if the connection
                turns out to be unusable.
            settings: how to connect.
            deadline: on :func:`time.monotonic`'s clock.
            limit: the size of the largest accepted body, in bytes before decompression.

        Raises:
            OSError: there is no complete answer; TimeoutError if there is none in time.
            UnsendableError: the request cannot be sent.
            Exception: whatever ``prepare``, or the request's ``sending``, raises.
        """
        origin = origin_of(address)
        key = origin, owner, settings
        while True:
            self._check_open()
            pool = self.pool()
            kept = pool.take(key)
            connection = kept or await self._connect(pool, origin, settings, deadline)
            connection.tcp.deadline = deadline
            reusable = False
            try:
                await self.turn()
                request = await prepare()
                text = request_bytes(request, proxy_at(settings.proxy))
                if connection.is_usable():
                    request.sending()
                    await connection.top.send(text)
                    request.sent()
                    answer = await connection.answer(limit)
                    reusable = answer.reusable
                    return answer
                if kept is None:
                    raise WireError(
                        "the peer closed the connection or sent something before the request"
                    )
            finally:
                if reusable and not self.closed:
                    pool.give_back(key, connection)
                else:
                    connection.tcp.close()

    def _check_open(self) -> None:
        if self.closed:
            raise WireError("the connections were closed")

    async def _connect(
        self, pool: Pool, origin: Origin, settings: ConnectionSettings, deadline: float
    ) -> Connection:
        pool.drop_idle(but=settings)
        proxy = proxy_at(settings.proxy)
        connection = Connection(await self.dial(proxy.origin if proxy else origin, deadline))
        pool.add(connection.tcp)
        try:
            self._check_open()
            if proxy and proxy.origin.encrypted:
                await connection.encrypt(settings.tls_context(), proxy.origin.host)
            if proxy and not proxy.forwards(origin):
                await connection.negotiate(proxy.handshake(origin))
            if origin.encrypted:
                await connection.encrypt(settings.tls_context(), origin.host)
        except BaseException:
            connection.tcp.close()
            raise
        return connection
