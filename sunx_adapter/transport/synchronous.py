"""The synchronous way over HTTP: an httpx transport that keeps to a deadline, and its sender.

httpx's own transport bounds each single read, so a peer that sends one byte now and then holds
it for ever. This one gives every read of a request the time that is left until its deadline.
"""

import contextlib
import ipaddress
import os
import socket
import ssl
import threading
import time
import typing
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

import httpcore
import httpx

from sunx_adapter.protocol.envelope import HttpAnswer
from sunx_adapter.transport.body import BodyReader
from sunx_adapter.transport.faults import network_fault
from sunx_adapter.transport.http11 import Answer
from sunx_adapter.transport.redaction import redact_logs
from sunx_adapter.transport.request import request_url
from sunx_adapter.transport.settings import IDLE_SECONDS, ConnectionSettings

DEADLINE = "deadline"
"""Request extension: when the whole answer must be there, on :func:`time.monotonic`'s clock."""


# As many connections as there are threads.
_POOL: Final[dict[str, Any]] = {
    "max_connections": None,
    "max_keepalive_connections": 100,
    "keepalive_expiry": IDLE_SECONDS,
}


class _Until(threading.local):
    """The deadline of the request that this thread is busy with, and what it connected for it."""

    deadline: float | None = None
    connected: "_DeadlineStream | None" = None

    def left(self, timeout: float | None) -> float | None:
        if self.deadline is None:
            return timeout
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the deadline has passed")
        return left if timeout is None else min(left, timeout)


class _DeadlineStream(httpcore.NetworkStream):
    """Also watches that a connection is not used again once something came behind an answer.

    httpcore would take it for the answer to the next request.
    """

    def __init__(self, stream: httpcore.NetworkStream, until: _Until) -> None:
        self._stream = stream
        self._until = until
        self._answer: Answer | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._until.left(timeout))
        if self._answer is not None:
            # What is wrong with it, httpcore tells.
            with contextlib.suppress(httpx.RemoteProtocolError):
                self._answer.feed(data)
                self._answer.take()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._answer is None or self._answer.ended:
            self._answer = Answer()
        self._stream.write(buffer, self._until.left(timeout))

    def close(self) -> None:
        # Closing a socket does not wake a thread that reads from it; shutting it down does.
        connection = self._stream.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._until.left(timeout))
        return _DeadlineStream(stream, self._until)

    def get_extra_info(self, info: str) -> typing.Any:
        if info == "is_readable" and self._answer is not None and not self._answer.reusable:
            return True  # by this httpcore tells whether an idle connection is to be given up
        return self._stream.get_extra_info(info)


class _DeadlineBackend(httpcore.NetworkBackend):
    def __init__(self, until: _Until) -> None:
        self._backend = httpcore.SyncBackend()
        self._until = until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in resolve(host, port, self._until.left(timeout)):
            try:
                stream = self._backend.connect_tcp(
                    address, port, self._until.left(timeout), local_address, socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
            else:
                self._until.connected = _DeadlineStream(stream, self._until)
                return self._until.connected
        raise failure


def resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """The host's addresses. The system's resolver knows no timeout, so it gets a thread.

    Raises:
        httpcore.ConnectError: there is none.
        httpcore.ConnectTimeout: there was none within ``timeout`` seconds.
    """
    found: list[str] = []
    failures: list[OSError] = []

    def resolve() -> None:
        try:
            for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                found.append(str(address[0]))
        except OSError as error:
            failures.append(error)

    try:
        ipaddress.ip_address(host)
    except ValueError:
        resolver = threading.Thread(target=resolve, name="sunx-adapter-resolver", daemon=True)
        resolver.start()
        resolver.join(timeout)
        if resolver.is_alive():
            raise httpcore.ConnectTimeout(f"no address of {host} in time") from None
        if failures:
            raise httpcore.ConnectError(f"{host}: {failures[0].strerror}") from None
        return found
    return [host]


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_stream()
        except _HTTPCORE_ERRORS as error:
            raise _as_httpx(error) from error

    def close(self) -> None:
        self._response.close()


try:
    from socksio.exceptions import SOCKSError  # of the extra "socks"
except ImportError:
    _SOCKS_ERRORS: tuple[type[Exception], ...] = ()
else:
    _SOCKS_ERRORS = (SOCKSError,)

_HTTPCORE_ERRORS: Final[tuple[type[Exception], ...]] = (
    *_SOCKS_ERRORS,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


def _as_httpx(error: Exception) -> httpx.TransportError:
    if isinstance(error, _SOCKS_ERRORS):
        return httpx.ProxyError(str(error))
    # httpx gives its exceptions the names of httpcore's.
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return kind(str(error))


class DeadlineTransport(httpx.BaseTransport):
    """An httpx transport over httpcore that keeps to the request extension ``deadline``.

    Safe to share by threads.

    Args:
        settings: certificates and proxy.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        redact_logs()
        self._until = _Until()
        backend = _DeadlineBackend(self._until)
        tls = settings.tls_context()
        if settings.proxy is None:
            self._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=backend, **_POOL)
        else:
            # One class answers for both kinds, as httpx's own Proxy does.
            proxy = httpx.Proxy(settings.proxy)
            socks = proxy.url.scheme.startswith("socks")
            more: dict[str, Any] = dict(_POOL)
            if proxy.url.scheme == "https":
                more["proxy_ssl_context"] = tls
            self._pool = (httpcore.SOCKSProxy if socks else httpcore.HTTPProxy)(
                proxy_url=str(proxy.url),
                proxy_auth=proxy.raw_auth,
                ssl_context=tls,
                network_backend=backend,
                **more,
            )

        # However it is collected, connections are closed before their sockets are.
        weakref.finalize(self, _close_in, os.getpid(), self._pool)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and give the answer as soon as its head is there."""
        self._until.deadline = request.extensions.get(DEADLINE)
        url, response = request_url(request), None
        try:
            response = self._pool.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(url),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except _HTTPCORE_ERRORS as error:
            raise _as_httpx(error) from error
        finally:
            connected, self._until.connected = self._until.connected, None
            if response is None and connected is not None:
                # httpcore leaves a connection open that a SOCKS proxy refused.
                connected.close()
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def _close_in(process: int, pool: httpcore.ConnectionPool) -> None:
    # Connections of another process are not for the child of a fork.
    if os.getpid() == process:
        pool.close()


def send(
    transport: httpx.BaseTransport,
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
    seconds = max(deadline - time.monotonic(), 0.001)
    request.extensions[DEADLINE] = deadline
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
    try:
        response = transport.handle_request(request)
        try:
            reader = BodyReader(response.headers.get("content-encoding", ""), max_bytes)
            for chunk in typing.cast("httpx.SyncByteStream", response.stream):
                if not reader.feed(chunk):
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("the deadline has passed")
        finally:
            response.close()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise network_fault(error, request, timeout_ms) from error
    return HttpAnswer(response.status_code, response.headers, reader.finish(), reader.defect)
