"""The server that plays vectors: real TCP on the loopback interface, one free port per play.

Each play has a port of its own, so any number can be under way at once, and an exchange needs to
know nothing but an address. All of them live in one thread, which ends with the session.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, TypeVar

from suite.vectors import SERVER, TARGET, Answer, Transport, Vector

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
"""Seconds after which a client that waits for nothing is sent away, and a play that does not open
or close has failed."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_GREETING: Final = Answer(HTTPStatus.OK, {"Content-Type": "application/json"}, b"{}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came.

    Attributes:
        method: ``GET``.
        target: path and query.
    """

    method: str
    target: str

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class Play:
    """A server that answers every request with one vector.

    Attributes:
        address: what an exchange is pointed at.
        requests: what came, in the order in which it came.
    """

    def __init__(
        self, answer: Answer, transport: Transport, others: Mapping[str, Answer] | None = None
    ) -> None:
        self.address = ""
        self.requests: list[Request] = []
        self._answer = answer
        self._transport = transport
        self._others = others or {}
        self._server: asyncio.Server | None = None
        self._deaf: socket.socket | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take a free port."""
        if self._transport.connection == "refuse":
            # Bound, so that nobody else gets the port, but not listening.
            self._deaf = socket.socket()
            self._deaf.bind((HOST, 0))
            port = self._deaf.getsockname()[1]
        else:
            self._server = await asyncio.start_server(self._accept, HOST, 0)
            port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://{HOST}:{port}"

    async def close(self) -> None:
        """End every conversation and give the port back."""
        if self._deaf is not None:
            self._deaf.close()
        if self._server is not None:
            # asyncio loses a connection that was accepted just before its server is closed, and
            # leaves its socket open; so accepting ends first, and what was accepted has begun.
            for listener in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listener)
            await asyncio.sleep(0)
            self._server.close()
            for conversation in self._conversations:
                conversation.cancel()
            await asyncio.gather(*self._conversations, return_exceptions=True)
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.ensure_future(self._converse(reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A client may leave whenever it likes.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._respond(reader, writer):
                    pass
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; true if the connection can take another one."""
        request = await _read_request(reader)
        self.requests.append(request)
        other = self._others.get(request.path)
        transport = self._transport if other is None else Transport()
        if transport.connection == "silent":
            await _hang_up(reader)
            return False
        if transport.connection == "reset":
            _reset(writer)
            return False
        if transport.connection == "close":
            return False
        if transport.raw is not None:
            async for piece in _in_pieces(transport.raw, transport):
                writer.write(piece)
                await writer.drain()
            return False
        await self._send(other or self._answer, transport, request, writer)
        if transport.cut_after is None:
            return transport.framing != "until-close"
        if transport.cut_by == "stall":
            await _hang_up(reader)
        elif transport.cut_by == "reset":
            _reset(writer)
        return False

    async def _send(
        self, answer: Answer, transport: Transport, request: Request, writer: asyncio.StreamWriter
    ) -> None:
        headers = {name: self._fill(text, request) for name, text in answer.headers.items()}
        body = answer.body
        if answer.text_body:
            body = self._fill(body.decode(), request).encode()
        match transport.framing:
            case "content-length":
                headers["Content-Length"] = str(len(body))
            case "chunked":
                headers["Transfer-Encoding"] = "chunked"
            case "until-close":
                headers["Connection"] = "close"
        writer.write(_head(answer.status, headers))
        chunked = transport.framing == "chunked"
        async for piece in _in_pieces(body[: transport.cut_after], transport):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked and transport.cut_after is None:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _fill(self, text: str, request: Request) -> str:
        return text.replace(SERVER, self.address).replace(TARGET, request.target)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.split("\r\n")
    method, target, _ = request_line.split(" ")
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            await reader.readexactly(int(value))
    return Request(method, target)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unassigned"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {text}" for name, text in headers.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


async def _in_pieces(whole: bytes, transport: Transport) -> AsyncIterator[bytes]:
    size = max(transport.piece or len(whole), 1)
    for start in range(0, len(whole), size):
        if start and transport.pause:
            await asyncio.sleep(transport.pause)
        yield whole[start : start + size]


async def _hang_up(reader: asyncio.StreamReader) -> None:
    """Wait until the client leaves, though not for ever: it may have no timeout."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(), PATIENCE)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


class Playback:
    """Where plays live: an event loop in a thread of its own. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="playback", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @contextlib.contextmanager
    def playing(
        self, vector: Vector | None = None, others: Mapping[str, Answer] | None = None
    ) -> Iterator[Play]:
        """Play a vector for as long as the context lasts.

        Args:
            vector: what to play; without one, an empty JSON object.
            others: answers at other paths, which take precedence.
        """
        play = (
            Play(_GREETING, Transport(), others)
            if vector is None
            else Play(vector.answer, vector.transport, others)
        )
        self._wait_for(play.open())
        try:
            yield play
        finally:
            self._wait_for(play.close())

    def _wait_for(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)
