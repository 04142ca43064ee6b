"""The sandbox's HTTP server: aiohttp in its own thread and event loop."""

import asyncio
import contextlib
import gzip
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from email.utils import formatdate
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sunx_adapter.sandbox.answers import HttpAnswer, status_phrase
from sunx_adapter.sandbox.delivery import Delivery, deliver
from sunx_adapter.sandbox.faults import Fault

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_BACKLOG: Final = 1024
_GRACE_SECONDS: Final = 0.5


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free one.

    Raises:
        OSError: the address cannot be used; the message says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(
            error.errno,
            f"the sandbox cannot listen on {host} port {port} ({reason}): choose another port, "
            f"or 0 for a free one",
        ) from error


class ServerThread:
    """An HTTP server on a listening socket, in its own thread and event loop.

    The constructor returns when the server is running, and raises what prevented that.

    Args:
        handler: makes the response to a request; cancelled when the client disconnects.
        listener: the socket; the server closes it.
    """

    def __init__(self, handler: Handler, listener: socket.socket) -> None:
        self._handler = handler
        self._listener = listener
        self._ending = asyncio.Event()
        self._serving: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="sunx-adapter-sandbox", daemon=True)
        self._thread.start()
        try:
            self._loop = self._serving.result()
        except Exception:
            self._thread.join()
            raise

    def stop(self) -> None:
        """Close all connections and wait until the thread has ended."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._serving.done():
                raise
            # The constructor waits for it and raises it.
            self._serving.set_exception(error)
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        # aiohttp would log invalid requests, with key and signature.
        silent = logging.Logger("aiohttp", level=logging.CRITICAL + 1)
        server = web.Server(
            self._handler, handler_cancellation=True, access_log=None, logger=silent
        )
        runner = web.ServerRunner(server, shutdown_timeout=_GRACE_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listener, backlog=_BACKLOG).start()
            self._serving.set_result(loop)
            await self._ending.wait()
            # asyncio would leave a socket open that was accepted just before its server closes.
            # So stop accepting first, and let accepted connections start.
            with contextlib.suppress(NotImplementedError):  # an event loop without add_reader()
                loop.remove_reader(self._listener)
            await asyncio.sleep(0)
            # An orderly close would wait until clients have read everything or disconnected.
            for connection in server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        finally:
            await runner.cleanup()


class _RawResponse(web.StreamResponse):
    """Writes raw bytes, which need not be HTTP, and ends the connection."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self.force_close()
        self._delivery = delivery

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send everything; the delivery includes the head."""
        if isinstance(request.transport, asyncio.Transport):
            await deliver(self._delivery, request.transport)
            if self._delivery.end == "stall":
                await asyncio.Event().wait()  # cancelled when the client disconnects
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: everything was sent."""


async def respond(
    answer: HttpAnswer, fault: Fault | None, accept_encoding: str | None, now: float
) -> web.StreamResponse:
    """Make aiohttp's response from an answer.

    Args:
        answer: compressed if the client accepts gzip.
        fault: may change how the answer is sent.
        accept_encoding: the request's header.
        now: seconds UTC, for the ``Date`` header.
    """
    headers = {
        **answer.headers,
        "Date": formatdate(now, usegmt=True),
        "Server": "sunx-adapter-sandbox",
        "Vary": "Accept-Encoding",
    }
    body = answer.body
    if body and "Content-Encoding" not in headers and accepts_gzip(accept_encoding):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, mtime=0)
    if fault is not None and fault.rule.instead is not None:
        return _RawResponse(fault.rule.instead)
    if fault is not None and fault.rule.delivery is not None:
        lines = [f"HTTP/1.1 {answer.status} {status_phrase(answer.status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        delivery = fault.rule.delivery("\r\n".join(lines).encode(), body, fault.value)
        if delivery.end != "keep":
            return _RawResponse(delivery)
        await asyncio.sleep(delivery.delay)
    return web.Response(status=answer.status, body=body, headers=headers)


def accepts_gzip(header: str | None) -> bool:
    """Whether an ``Accept-Encoding`` header accepts gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, bool] = {}
    for item in (header or "").lower().split(","):
        coding, _, weight = item.partition(";")
        weights[coding.strip()] = weight.strip().rstrip("0") not in {"q=", "q=0."}
    return weights.get("gzip", weights.get("*", False))
