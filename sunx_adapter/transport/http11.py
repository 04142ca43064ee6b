"""HTTP/1.1 on one connection: what comes is read by httptools, and is for its own request or none.

httptools (llhttp, the parser of Node.js) reads strictly; what is left for here is the order of
what comes. :class:`Answer` needs no network; :class:`Connection` is asyncio's side of it, and the
synchronous transport lets an :class:`Answer` watch over what httpcore reads.
"""

import asyncio
import select
import ssl
from typing import Final, cast

import httptools
import httpx

MAX_FRAMING_BYTES: Final = 65_536
"""The longest head, and the most that may come between two pieces of a body, or behind it."""

_MAX_UNREAD_BYTES: Final = 262_144
"""With so much of a body unread, nothing more is taken from the network."""


class Answer:
    """The answer to one request, as far as it came.

    Attributes:
        status: of its head.
        headers: of its head, names as they came.
        has_head: whether the head is there.
        ended: whether it is whole.
        reusable: whether the connection can take another request: it is whole, nothing came
            behind it and nobody means to close.
        unread: the bytes of its body that were not taken yet.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.ended = False
        self.reusable = False
        self.unread = 0
        self._ends_with_connection = False
        self._interim = False
        self._framing = 0
        self._body: list[bytes] = []
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take in what came.

        Raises:
            httpx.RemoteProtocolError: it is no HTTP, or has no end.
        """
        if self._parser is None:
            # Behind the answer. What it would be taken for is anybody's guess.
            self.reusable = False
            return
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise httpx.RemoteProtocolError("the answer changes the protocol, unasked") from None
        except httptools.HttpParserError as error:
            self.reusable = False
            if not self.ended:
                raise httpx.RemoteProtocolError(f"the answer is no HTTP: {error}") from None
        if self.ended:
            self._parser = None  # which refers to this
        elif self._framing > MAX_FRAMING_BYTES:
            raise httpx.RemoteProtocolError("the answer has a head without end")

    def end(self) -> None:
        """The connection has ended.

        Raises:
            httpx.RemoteProtocolError: before the answer was whole.
        """
        self.reusable = False
        self._parser = None
        if self.has_head and self._ends_with_connection:
            self.ended = True
        if not self.ended:
            part = "in the middle of" if self.has_head else "before"
            raise httpx.RemoteProtocolError(f"the connection was closed {part} the answer")

    def take(self) -> bytes:
        """What came of the body since the last time."""
        body, self._body, self.unread = self._body, [], 0
        return body[0] if len(body) == 1 else b"".join(body)

    # -- from httptools, in this order ------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; a second one would not be this request's."""
        if self.ended:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; behind the body it is none that counts."""
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is there; one that only tells of the one to come is passed over."""
        if self.ended or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        self._interim = self.status < httpx.codes.OK
        if self._interim:
            self.headers = []
            return
        self.has_head = True
        self._ends_with_connection = not any(
            name.lower() == b"content-length"
            or (name.lower() == b"transfer-encoding" and value.strip().lower().endswith(b"chunked"))
            for name, value in self.headers
        )

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self.ended:
            self._framing = 0
            self._body.append(body)
            self.unread += len(body)

    def on_message_complete(self) -> None:
        """An answer is whole."""
        if not self._interim and not self.ended and self._parser is not None:
            self.ended = True
            self.reusable = self._parser.should_keep_alive()


class Connection(asyncio.Protocol):
    """A connection to one peer, for one request at a time.

    Args:
        keeps: anything that must live as long.

    Attributes:
        answer: to the latest request.
        lost: done when it has ended.
    """

    def __init__(self, keeps: object = None) -> None:
        self._keeps = keeps
        self.answer = Answer()
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._resting_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: httpx.TransportError | None = None
        self._paused = False
        self._tunnels = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self.answer.reusable and not self.answer.unread and not self.lost.done()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came meanwhile, not even what the event loop has not read yet."""
        return self._transport is not None and not _is_readable(
            self._transport.get_extra_info("socket").fileno()
        )

    @property
    def idle_seconds(self) -> float:
        """How long it rests already."""
        return self._loop.time() - self._resting_since

    def rest(self) -> None:
        """Nothing is asked for the moment."""
        self._resting_since = self._loop.time()

    async def request(self, text: bytes, *, tunnels: bool = False) -> None:
        """Send a request; returns when the head of its answer is there.

        Args:
            text: the request as it goes over the wire.
            tunnels: whether it is for a tunnel, so that the answer's own end means nothing.

        Raises:
            httpx.TransportError: the connection ended before, or what came is no HTTP.
        """
        self.answer = Answer()
        self._tunnels = tunnels
        if self._transport is not None:
            self._transport.write(text)
        while not self.answer.has_head:
            await self._news()

    async def read(self) -> bytes:
        """What came of the body since; nothing once it has ended.

        Raises:
            httpx.TransportError: the connection ended in the middle of it.
        """
        while not self.answer.unread and not self.answer.ended:
            await self._news()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return self.answer.take()

    async def encrypted(self, tls: ssl.SSLContext, host: str) -> "Connection":
        """The same with TLS on it, with the host that a tunnel leads to. Instead of this one.

        Raises:
            OSError: the host's certificate is not trusted, or it does not speak TLS.
        """
        inner = Connection(keeps=self)
        try:
            if self._transport is None or self.answer.unread:
                raise ConnectionResetError("the tunnel ended before it was used")
            transport = await self._loop.start_tls(
                self._transport, inner, tls, server_hostname=host
            )
        except BaseException:
            self.abort()
            raise
        inner.connection_made(cast("asyncio.Transport", transport))
        return inner

    def abort(self) -> None:
        """End it at once."""
        self.answer.reusable = False
        if not self.answer.ended and self._failure is None:
            # What came of it is not the whole, however its end is told.
            self._failure = httpx.ReadError("the connection was given up")
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- from asyncio -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be written to."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        try:
            self.answer.feed(data)
        except httpx.TransportError as error:
            self._failure = error
            self.abort()
        if self.answer.ended and not self.answer.reusable and not self._tunnels:
            self.abort()
        elif self.answer.unread > _MAX_UNREAD_BYTES and not self._paused:
            self._paused = True
            if self._transport is not None:
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        if self._failure is None and not self.answer.ended:
            try:
                if exc is not None:
                    raise httpx.ReadError(str(exc) or type(exc).__name__)
                self.answer.end()
            except httpx.TransportError as error:
                self._failure = error
        self._transport = None
        self._wake()
        if not self.lost.done():
            self.lost.set_result(None)


def _is_readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows, where any number will do
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
