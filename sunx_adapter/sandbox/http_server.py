"""An HTTP server whose handler decides every byte: aiohttp reads, a :class:`Delivery` answers."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sunx_adapter.sandbox.delivery import Delivery, reset

Handler = Callable[[web.BaseRequest], Awaitable[Delivery | web.StreamResponse]]

_logger = logging.getLogger("sunx_adapter.sandbox")

_BACKLOG: Final = 1024
_GRACE_SECONDS: Final = 0.5


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free one. An OSError says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        text = f"the sandbox cannot listen on {host} port {port} ({reason})"
        advice = "choose another port, or 0 for a free one"
        raise OSError(error.errno, f"{text}: {advice}") from error


class LoopThread:
    """An event loop in its own thread, for any number of servers."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the thread to its end."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """End the thread; its servers must be stopped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class HttpServer:
    """An HTTP server on a listening socket, which it closes in the end.

    The handler makes the answer to a request; it is cancelled when the client disconnects.
    """

    def __init__(self, handler: Handler, listener: socket.socket) -> None:
        self._handler = handler
        self._listener = listener

    async def start(self) -> None:
        """Start serving in this event loop."""
        # aiohttp would log invalid requests, with key and signature.
        silent = logging.Logger("aiohttp", level=logging.CRITICAL + 1)
        self._server = web.Server(
            self._respond, handler_cancellation=True, access_log=None, logger=silent
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=_GRACE_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, backlog=_BACKLOG).start()

    async def stop(self) -> None:
        """Close the port and all connections, without waiting for clients."""
        # asyncio would leave a socket open that was accepted just before its server closes.
        # So stop accepting first, and let accepted connections start.
        with contextlib.suppress(NotImplementedError):  # an event loop without add_reader()
            asyncio.get_running_loop().remove_reader(self._listener)
        await asyncio.sleep(0)
        # An orderly close would wait until clients have read everything or disconnected.
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._listener.close()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._handler(request)
        except Exception as error:
            if not isinstance(error, ConnectionError):  # the client has disconnected
                _logger.exception("internal error of the server")
            raise
        return _Response(answer, request) if isinstance(answer, Delivery) else answer


class _Response(web.StreamResponse):
    """Sends a delivery instead of an answer of aiohttp's own."""

    def __init__(self, delivery: Delivery, request: web.BaseRequest) -> None:
        super().__init__()
        self._delivery = delivery
        self._kept = delivery.end == "keep" and request.keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves the next request."""
        return self._kept

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send everything; the delivery includes the head."""
        delivery, transport = self._delivery, request.transport
        for number, piece in enumerate(delivery.pieces):
            if number and delivery.pause:
                await asyncio.sleep(delivery.pause)
            if transport is None or transport.is_closing():
                return None
            transport.write(piece)
        if delivery.end == "reset" and transport is not None:
            reset(transport)
        await request.writer.drain()
        if delivery.end == "stall":
            await asyncio.Event().wait()  # cancelled when the client disconnects
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: everything was sent."""
