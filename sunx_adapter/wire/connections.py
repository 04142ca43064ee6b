"""Kept connections and one request over them, written once for threads and for tasks.

The coroutines here suspend only in the verbs of a :class:`Socket`. Those of
:mod:`~sunx_adapter.wire.threads` never do, so that there a call is done at its first step.

An answer belongs to its request. HTTP/1.1 has no ids, so a connection is used again only if
nothing but whole answers ever arrived on it, which is looked at right before the next request is
written; and only for the owner that used it before, since a late duplicate looks like an answer.
"""

import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from weakref import WeakSet

from sunx_adapter.wire.answer import Answer, WireError
from sunx_adapter.wire.route import (
    Handshake,
    Origin,
    Proxy,
    ProxyError,
    Request,
    origin_of,
    written,
)
from sunx_adapter.wire.settings import IDLE_SECONDS, ConnectionSettings

CHUNK: Final = 65_536

Place = tuple[Origin, str]
"""Where a connection leads, and who uses it."""


class Socket(Protocol):
    """One TCP connection: the verbs in which threads and tasks differ."""

    deadline: float
    """When every wait ends, on :func:`time.monotonic`'s clock."""

    async def send(self, data: bytes) -> None:
        """Send all of it."""

    async def receive(self) -> bytes:
        """What arrived; nothing once the peer has closed."""

    def arrived(self) -> bytes | None:
        """What arrived by now, without waiting; ``None`` if nothing did."""

    def now(self) -> float:
        """The time in seconds, by the clock that whoever waits goes by."""

    def abort(self) -> None:
        """End the connection under whoever uses it, who then closes it."""

    def close(self) -> None:
        """Close it at once."""


class Tls:
    """TLS over a socket, or over another TLS. :mod:`ssl` does the work, on bytes in memory."""

    def __init__(self, below: "Socket | Tls", context: ssl.SSLContext, host: str) -> None:
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)

    async def handshake(self) -> None:
        """Agree on keys.

        Raises:
            ssl.SSLError: the certificate is not trusted, or the peer speaks no TLS.
        """
        await self._carry(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self._tls.write(data)
        await self._below.send(self._out.read())

    async def receive(self) -> bytes:
        """What arrived; nothing once the peer has closed."""
        with contextlib.suppress(ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return bytes(await self._carry(lambda: self._tls.read(CHUNK)))
        return b""

    def arrived(self) -> bytes | None:
        """What arrived by now, without waiting; ``None`` if nothing but TLS's own messages did."""
        while True:
            try:
                return self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                if not (data := self._below.arrived()):
                    return data
                self._in.write(data)
            except ssl.SSLError:
                return b""

    async def _carry(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                result = act()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._below.receive():
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self._out.read():
            await self._below.send(data)


class Connection:
    """One connection to an origin, through whatever is on the way."""

    def __init__(self, tcp: Socket) -> None:
        self.tcp = tcp
        self.top: Socket | Tls = tcp
        self._rested: float | None = None

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on; a second time, inside the first."""
        tls = Tls(self.top, context, host)
        await tls.handshake()
        self.top = tls

    async def negotiate(self, handshake: Handshake) -> None:
        """Have a proxy make a tunnel."""
        text = next(handshake)
        with contextlib.suppress(StopIteration):
            while True:
                if text:
                    await self.top.send(text)
                if not (data := await self.top.receive()):
                    raise ProxyError("the proxy closed the connection")
                text = handshake.send(data)

    async def answer(self, text: bytes, limit: int) -> Answer:
        """Write a request, and read its answer whole."""
        self._rested = None
        await self.top.send(text)
        answer = Answer(limit)
        while not answer.ended:
            data = await self.top.receive()
            answer.feed(data) if data else answer.end()
        return answer

    def rest(self) -> None:
        """It is used no more for the moment."""
        self._rested = self.tcp.now()

    def is_old(self) -> bool:
        """Whether it rested for so long that the peer may be about to close it."""
        return self._rested is not None and self.tcp.now() - self._rested > IDLE_SECONDS

    def is_fit(self) -> bool:
        """Whether it can take a request: it is young, and nothing arrived that nobody asked for."""
        return not self.is_old() and self.top.arrived() is None


class Pool:
    """The connections usable where the caller is. Its lock is never held across a wait."""

    def __init__(self) -> None:
        # Weakly: a connection whose user was interrupted at a bad moment closes by itself.
        self._open: WeakSet[Any] = WeakSet()
        self._resting: dict[Place, list[Connection]] = {}
        self._lock = threading.Lock()

    def add(self, opened: Any) -> None:
        """Know of a socket, or of one that is being made."""
        with self._lock:
            self._open.add(opened)

    def discard(self, opened: Any) -> None:
        """Know of it no more."""
        with self._lock:
            self._open.discard(opened)

    def take(self, place: Place) -> Connection | None:
        """The connection that was used last, if it is young; nobody else has it from now on."""
        with self._lock:
            resting = self._resting.get(place)
            connection = resting.pop() if resting else None
        if connection is not None and connection.is_old():
            self.drop(connection)
            return None
        return connection

    def give_back(self, place: Place, connection: Connection) -> None:
        """Keep a connection for its owner's next request."""
        connection.rest()
        with self._lock:
            self._resting.setdefault(place, []).append(connection)

    def drop(self, *connections: Connection) -> None:
        """Close connections."""
        for connection in connections:
            self.discard(connection.tcp)
            connection.tcp.close()

    def drop_old(self) -> None:
        """Close those that rested for too long, whoever used them."""
        with self._lock:
            old = [each for kept in self._resting.values() for each in kept if each.is_old()]
            self._resting = {
                place: young
                for place, kept in self._resting.items()
                if (young := [each for each in kept if not each.is_old()])
            }
        self.drop(*old)

    def drop_resting(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            resting, self._resting = self._resting, {}
        for kept in resting.values():
            self.drop(*kept)

    def abort(self) -> list[Any]:
        """End everything: what rests is closed, what is used fails under its user.

        Returns:
            What was open.
        """
        with self._lock:
            ended = list(self._open)
        self.drop_resting()
        for used in ended:
            used.abort()
        return ended

    def forget(self) -> None:
        """Close the copies that the child of a fork has; the parent's connections go on."""
        for inherited in list(self._open):
            inherited.close()


class Connections:
    """Sends requests over connections that it keeps.

    Args:
        settings: certificates and proxy.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.closed = False
        self._proxy = Proxy(settings.proxy) if settings.proxy else None

    def pool(self) -> Pool:
        """The connections that may be used where the caller is."""
        raise NotImplementedError

    async def dial(self, origin: Origin, deadline: float) -> Socket:
        """A connection to an origin, not encrypted."""
        raise NotImplementedError

    async def fetch(
        self,
        address: str,
        owner: str,
        prepare: Callable[[], Awaitable[Request]],
        *,
        deadline: float,
        limit: int,
    ) -> Answer:
        """Send a request over a connection that is ready, and read its answer whole.

        Args:
            address: scheme, host and port of the request, or any URL with them.
            owner: whose connections may be used.
            prepare: gives the request when there is a connection to write it to, and again if
                that one turned out to be unfit.
            deadline: on :func:`time.monotonic`'s clock.
            limit: the largest body, in bytes as it arrives.

        Raises:
            OSError: there is no whole answer; a TimeoutError if there is none in time.
            Unsendable: the request cannot be sent.
        """
        origin = origin_of(address)
        place = origin, owner
        while True:
            self._check_open()
            pool = self.pool()
            connection = pool.take(place) or await self._connect(pool, origin, deadline)
            connection.tcp.deadline = deadline
            reusable = False
            try:
                text = written(await prepare(), self._proxy)
                if connection.is_fit():
                    answer = await connection.answer(text, limit)
                    reusable = answer.reusable
                    return answer
            finally:
                if reusable and not self.closed:
                    pool.give_back(place, connection)
                else:
                    pool.drop(connection)

    def _check_open(self) -> None:
        if self.closed:
            raise WireError("the connections were closed by their owner")

    def retire(self) -> None:
        """Take no more requests; those under way are done to their end."""
        self.closed = True
        self.pool().drop_resting()

    async def _connect(self, pool: Pool, origin: Origin, deadline: float) -> Connection:
        pool.drop_old()
        proxy = self._proxy
        connection = Connection(await self.dial(proxy.origin if proxy else origin, deadline))
        pool.add(connection.tcp)
        try:
            self._check_open()
            if proxy and proxy.origin.encrypted:
                await connection.encrypt(self.settings.tls_context(), proxy.origin.host)
            if proxy and not proxy.forwards(origin):
                await connection.negotiate(proxy.handshake(origin))
            if origin.encrypted:
                await connection.encrypt(self.settings.tls_context(), origin.host)
        except BaseException:
            pool.drop(connection)
            raise
        return connection
