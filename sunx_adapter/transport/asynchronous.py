"""The asynchronous way over HTTP: an httpx transport on asyncio's own connections, and its sender.

httpx's default asynchronous transport takes longer per request the more are under way (1.6 ms
with 32 at once), and aiohttp's client spends 85 of its 105 µs a request on what a signed GET does
not need. So connections are asyncio's, made by aiohappyeyeballs, and httptools reads what comes.
The seam is httpx's ``AsyncBaseTransport``, so that any other can be put in.
"""

import asyncio
import base64
import ipaddress
import socket
import ssl
import time
from collections import defaultdict
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import httpx

from sunx_adapter.protocol.envelope import HttpAnswer
from sunx_adapter.transport.body import BodyReader
from sunx_adapter.transport.faults import network_fault
from sunx_adapter.transport.http11 import Connection
from sunx_adapter.transport.redaction import redact_logs
from sunx_adapter.transport.request import SignedRequest, header_lines, request_url
from sunx_adapter.transport.settings import IDLE_SECONDS, ConnectionSettings

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""When the next address of a host is tried beside the first one (RFC 8305)."""

_NO_TIMEOUT: Final = 1e9
_PROXY_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


class Origin(NamedTuple):
    """Where a connection leads."""

    encrypted: bool
    host: str
    port: int


@lru_cache(maxsize=1024)
def _origin(address: str) -> Origin:
    """The origin of ``scheme://host:port``."""
    parts = urlsplit(address)
    encrypted = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise httpx.UnsupportedProtocol("the address is no HTTP URL")
    return Origin(encrypted, parts.hostname, parts.port or (443 if encrypted else 80))


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: Connection, kept: list[Connection]) -> None:
        self._connection = connection
        self._kept = kept

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._connection.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        # Given back if the body was read to its end, and closed otherwise.
        connection = self._connection
        if connection.reusable:
            connection.rest()
            self._kept.append(connection)
        else:
            connection.abort()


class _Proxy:
    """A proxy: one for HTTP forwards what is not encrypted; all else goes through a tunnel."""

    def __init__(self, address: str, tls: ssl.SSLContext) -> None:
        proxy = httpx.Proxy(address)
        scheme = proxy.url.scheme
        self._for_http = scheme in ("http", "https")
        self._tls = tls if scheme == "https" else None
        self._host, self._port = proxy.url.host, proxy.url.port or _PROXY_PORTS[scheme]
        self._auth = proxy.auth

    def forwards(self, origin: Origin) -> bool:
        """Whether it wants the request itself, instead of making a tunnel."""
        return self._for_http and not origin.encrypted

    @property
    def authorization(self) -> bytes:
        """The header line that a request to the proxy itself needs besides its own."""
        if self._auth is None:
            return b""
        token = base64.b64encode(":".join(self._auth).encode())
        return b"Proxy-Authorization: Basic %s\r\n" % token

    async def reach(self) -> Connection:
        """A connection to the proxy itself."""
        return await _reach(Origin(self._tls is not None, self._host, self._port), self._tls)

    async def tunnel(self, origin: Origin) -> Connection:
        """A connection through it to that origin, not encrypted yet.

        Raises:
            httpx.ProxyError: it does not make one.
        """
        return await (self._ask_http(origin) if self._for_http else self._ask_socks(origin))

    async def _ask_http(self, origin: Origin) -> Connection:
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        where = f"{host}:{origin.port}"
        tunnel = await self.reach()
        try:
            await tunnel.request(
                f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n".encode()
                + self.authorization
                + b"\r\n",
                tunnels=True,
            )
            if not httpx.codes.is_success(tunnel.answer.status):
                raise httpx.ProxyError(f"the proxy answered HTTP {tunnel.answer.status}")
        except BaseException:
            tunnel.abort()
            raise
        return tunnel

    async def _ask_socks(self, origin: Origin) -> Connection:
        # Of the extra "socks".
        from python_socks import ProxyConnectionError, ProxyError, ProxyType  # noqa: PLC0415
        from python_socks.async_.asyncio.v2 import Proxy  # noqa: PLC0415

        proxy = Proxy(ProxyType.SOCKS5, self._host, self._port, *(self._auth or ()))
        try:
            # Whoever calls keeps time.
            stream = await proxy.connect(origin.host, origin.port, timeout=_NO_TIMEOUT)
        except (ProxyError, ProxyConnectionError, EOFError) as error:
            raise httpx.ProxyError(str(error)) from error
        # The connection keeps the writer, which would close everything when it is collected.
        tunnel = Connection(stream.writer)
        transport = stream.writer.transport
        transport.set_protocol(tunnel)
        tunnel.connection_made(transport)
        return tunnel


async def _reach(origin: Origin, tls: ssl.SSLContext | None) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        reached = await aiohappyeyeballs.start_connection(
            await _addresses(origin),
            happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
            interleave=1,
        )
        try:
            _, connection = await loop.create_connection(
                Connection, sock=reached, ssl=tls, server_hostname=origin.host if tls else None
            )
        except BaseException:
            if isinstance(loop, asyncio.BaseEventLoop):
                reached.close()
            else:
                # uvloop has closed it by its number, which may be another file's by now.
                reached.detach()
            raise
    except OSError as error:
        raise _unreachable(origin, error) from error
    return connection


async def _addresses(origin: Origin) -> Any:
    try:
        ipaddress.ip_address(origin.host)
    except ValueError:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    # Needs no resolver, and no thread that others may be waiting for.
    return socket.getaddrinfo(
        origin.host, origin.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )


def _unreachable(origin: Origin, error: OSError) -> httpx.ConnectError:
    reason = error.strerror or str(error) or "closed by the other side"
    return httpx.ConnectError(f"cannot connect to {origin.host}:{origin.port}: {reason}")


class _Pool:
    """The connections of one event loop: all, and by origin those that wait for a request."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()
        self.kept: defaultdict[Origin, list[Connection]] = defaultdict(list)


class PooledTransport(httpx.AsyncBaseTransport):
    """An httpx transport for requests without a body, over connections that are kept.

    Connections belong to the event loop that made them: used in a second loop, it makes new ones.

    Args:
        settings: certificates and proxy.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        redact_logs()
        self._tls = settings.tls_context()
        self._proxy = _Proxy(settings.proxy, self._tls) if settings.proxy else None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._pool = _Pool()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and give the answer as soon as its head is there.

        Raises:
            httpx.TransportError: there is no answer, or the request cannot be sent.
            httpx.InvalidURL: its URL cannot be sent.
        """
        if not isinstance(request, SignedRequest) and await request.aread():
            raise httpx.UnsupportedProtocol("a request with a body is not sent")
        scheme, _, authority, *rest = request_url(request).partition("#")[0].split("/", 3)
        origin = _origin(f"{scheme}//{authority}")
        target, lines = "/" + "".join(rest), header_lines(request)
        if self._proxy is not None and self._proxy.forwards(origin):
            target = f"{scheme}//{authority}{target}"
            lines += self._proxy.authorization
        if not target.isascii() or not target.isprintable() or " " in target:
            raise httpx.InvalidURL("it has letters that no URL has")
        kept = self._current_pool().kept[origin]
        connection = _usable(kept) or await self._connect(origin)
        try:
            await connection.request(
                f"{request.method} {target} HTTP/1.1\r\n".encode() + lines + b"\r\n"
            )
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(
            status_code=connection.answer.status,
            headers=connection.answer.headers,
            stream=_Body(connection, kept),
            request=request,
        )

    async def aclose(self) -> None:
        """Close all connections; when this returns, they are closed."""
        self._closed = True
        closing = list(self._pools.get(asyncio.get_running_loop(), _Pool()).open)
        for connection in closing:
            connection.abort()
        for connection in closing:
            await connection.lost

    def _current_pool(self) -> _Pool:
        if self._closed:
            raise httpx.ConnectError("its owner has closed the connections")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            for other in [other for other in self._pools if other.is_closed()]:
                del self._pools[other]
            self._loop, self._pool = loop, self._pools.setdefault(loop, _Pool())
        return self._pool

    async def _connect(self, origin: Origin) -> Connection:
        pool, tls, proxy = self._pool, self._tls if origin.encrypted else None, self._proxy
        try:
            if proxy is None:
                connection = await _reach(origin, tls)
            elif proxy.forwards(origin):
                connection = await proxy.reach()
            else:
                connection = await proxy.tunnel(origin)
                if tls is not None:
                    connection = await connection.encrypted(tls, origin.host)
        except OSError as error:
            raise _unreachable(origin, error) from error
        pool.open.add(connection)
        connection.lost.add_done_callback(lambda _: pool.open.discard(connection))
        if self._closed:
            connection.abort()
        return connection


def _usable(kept: list[Connection]) -> Connection | None:
    """The connection that was given back last, if it can be used; else no older one can."""
    while kept:
        connection = kept.pop()
        fresh = connection.reusable and connection.idle_seconds <= IDLE_SECONDS
        if fresh and connection.is_quiet:
            return connection
        connection.abort()
    return None


async def send(
    transport: httpx.AsyncBaseTransport,
    request: httpx.Request,
    *,
    deadline: float,
    timeout_ms: float,
    max_bytes: int,
) -> HttpAnswer:
    """Send a request and read its answer whole.

    Args:
        transport: any httpx transport.
        request: ready to be sent.
        deadline: when the whole answer must be there, on :func:`time.monotonic`'s clock.
        timeout_ms: for the message.
        max_bytes: the largest body, after decompression.

    Raises:
        RequestTimeout: there was no whole answer in time.
        NetworkError: there was no whole answer for another reason.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            response = await transport.handle_async_request(request)
            stream = cast("httpx.AsyncByteStream", response.stream)
            try:
                reader = BodyReader(response.headers.get("content-encoding", ""), max_bytes)
                async for chunk in stream:
                    if not reader.feed(chunk):
                        break
            finally:
                await stream.aclose()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise network_fault(error, request, timeout_ms) from error
    return HttpAnswer(response.status_code, response.headers, reader.finish(), reader.defect)
