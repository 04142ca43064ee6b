"""The servers that send the vectors' answers: real TCP on the loopback interface.

Each server has its own free port, so many can run at once, and an exchange needs only an address.
All servers run in one thread, which ends with the session. The server is the sandbox's.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, Self

from aiohttp import web

from suite.vectors import SERVER, TARGET, Answer, Transport, Vector
from sunx_adapter.sandbox.delivery import Delivery, http_head, in_pieces
from sunx_adapter.sandbox.http_server import HttpServer, LoopThread

HOST: Final = "127.0.0.1"
STALL_SECONDS: Final = 30.0
"""How long a silent connection stays open."""

_EMPTY_OBJECT: Final = Answer(HTTPStatus.OK, {"Content-Type": "application/json"}, b"{}")


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
        self._server: HttpServer | None = None

    async def start(self) -> None:
        """Start on a free port."""
        # Bound, so that no other process gets the port. To refuse connections, it does not listen.
        port = socket.socket()
        port.bind((HOST, 0))
        self.address = f"http://{HOST}:{port.getsockname()[1]}"
        self._port = port
        if self._transport.connection != "refuse":
            self._server = HttpServer(self._answered, port)
            await self._server.start()

    async def stop(self) -> None:
        """Close all connections and the port."""
        if self._server is not None:
            await self._server.stop()
        self._port.close()

    async def _answered(self, received: web.BaseRequest) -> Delivery:
        request = Request(received.method, received.raw_path)
        self.requests.append(request)
        other = self._others.get(request.path)
        transport = self._transport if other is None else Transport()
        delivery = self._delivery(other or self._answer, transport, request)
        if delivery.end == "stall" and received.transport is not None:
            # Not for ever: the client may have no timeout.
            asyncio.get_running_loop().call_later(STALL_SECONDS, received.transport.abort)
        return delivery

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
        pieces[0] = http_head(answer.status, headers) + pieces[0]
        if transport.cut_after is not None:
            return Delivery(pieces, transport.pause, end=transport.cut_by)
        end: Literal["keep", "close"] = "close" if transport.framing == "until-close" else "keep"
        return Delivery(pieces, transport.pause, end)

    def _fill(self, text: str, request: Request) -> str:
        return text.replace(SERVER, self.address).replace(TARGET, request.target)


class ServerThread(LoopThread):
    """The thread of all servers. A context manager."""

    def __init__(self) -> None:
        super().__init__("vectors")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
        self.run(server.start())
        try:
            yield server
        finally:
            self.run(server.stop())
