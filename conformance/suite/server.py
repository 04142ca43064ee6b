"""The servers that send the vectors' answers: real TCP on the loopback interface.

Each server has its own free port, so many can run at once, and an exchange needs only an address.
All servers run in one thread, which ends with the session.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from suite.vectors import SERVER, TARGET, Answer, Transport, Vector
from sunx_adapter.sandbox.delivery import Delivery, deliver, in_pieces

HOST: Final = "127.0.0.1"
TIMEOUT: Final = 30.0
"""Seconds until a silent connection is closed, and until starting or stopping a server fails."""

_EMPTY_OBJECT: Final = Answer(HTTPStatus.OK, {"Content-Type": "application/json"}, b"{}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A received request.

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


class VectorServer:
    """A server that answers every request with one vector.

    Attributes:
        address: the base URL for an exchange.
        requests: the received requests, oldest first.
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
        self._refusing: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start on a free port."""
        if self._transport.connection == "refuse":
            # Bound, so that no other process gets the port, but not listening.
            self._refusing = socket.socket()
            self._refusing.bind((HOST, 0))
            port = self._refusing.getsockname()[1]
        else:
            self._server = await asyncio.start_server(self._accept, HOST, 0)
            port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://{HOST}:{port}"

    async def close(self) -> None:
        """Close all connections and the port."""
        if self._refusing is not None:
            self._refusing.close()
        if self._server is not None:
            # asyncio would leave a socket open that was accepted just before its server closes.
            # So stop accepting first, and let accepted connections start.
            for listener in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listener)
            await asyncio.sleep(0)
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._serve_connection(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            # A client may disconnect at any time.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._respond(reader, writer):
                    pass
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection can take another one."""
        request = await _read_request(reader)
        self.requests.append(request)
        other = self._others.get(request.path)
        transport = self._transport if other is None else Transport()
        delivery = self._delivery(other or self._answer, transport, request)
        await deliver(delivery, writer.transport)
        if delivery.end == "stall":
            await _wait_for_close(reader)
        return delivery.end == "keep"

    def _delivery(self, answer: Answer, transport: Transport, request: Request) -> Delivery:
        match transport.connection:
            case "silent":
                return Delivery(end="stall")
            case "reset":
                return Delivery(end="reset")
            case "close":
                return Delivery()
        if transport.raw is not None:
            raw = in_pieces(transport.raw, transport.piece or len(transport.raw) or 1)
            return Delivery(raw, transport.pause)
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
        pieces = in_pieces(body[: transport.cut_after], transport.piece or len(body) or 1) or [b""]
        if transport.framing == "chunked":
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
            pieces = [*pieces, b"0\r\n\r\n"] if transport.cut_after is None else pieces or [b""]
        pieces[0] = _head(answer.status, headers) + pieces[0]
        if transport.cut_after is not None:
            return Delivery(pieces, transport.pause, end=transport.cut_by)
        end: Literal["keep", "close"] = "close" if transport.framing == "until-close" else "keep"
        return Delivery(pieces, transport.pause, end)

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


async def _wait_for_close(reader: asyncio.StreamReader) -> None:
    """Wait until the client disconnects, but not for ever: it may have no timeout."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(), TIMEOUT)


class ServerThread:
    """The event loop of all servers, in its own thread. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vectors", daemon=True)

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
        self._thread.join(TIMEOUT)
        self._loop.close()

    @contextlib.contextmanager
    def serving(
        self, vector: Vector | None = None, others: Mapping[str, Answer] | None = None
    ) -> Iterator[VectorServer]:
        """Run a server while the context lasts.

        Args:
            vector: the answer to send; without one, an empty JSON object.
            others: answers at other paths, which take precedence.
        """
        server = (
            VectorServer(_EMPTY_OBJECT, Transport(), others)
            if vector is None
            else VectorServer(vector.answer, vector.transport, others)
        )
        self._wait_for(server.open())
        try:
            yield server
        finally:
            self._wait_for(server.close())

    def _wait_for(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)
