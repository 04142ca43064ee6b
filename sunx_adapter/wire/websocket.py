"""The push channel's connection: aiohttp's websocket client, bounded in size and in time."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from ccxt.base.errors import BadResponse, BaseError, ExchangeError, NetworkError, RequestTimeout

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.wire.background import Background
from sunx_adapter.wire.body import decompressed
from sunx_adapter.wire.dial import resolve
from sunx_adapter.wire.faults import network_fault
from sunx_adapter.wire.settings import ConnectionSettings

_GZIP: Final = b"\x1f\x8b"
_CLOSE_SECONDS: Final = 0.5
"""How long to wait for the peer's close frame."""

_TRY_AGAIN: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class _Redirected(Exception):  # noqa: N818 - it is answered, and goes no further
    def __init__(self, status: int, location: str) -> None:
        super().__init__(status, location)
        self.status = status
        self.location = location


async def _refuse_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    redirect: aiohttp.TraceRequestRedirectParams,
) -> None:
    # aiohttp's websocket client follows them and has no switch; the login would go elsewhere.
    location = redirect.response.headers.get("Location", "")
    redirect.response.close()
    raise _Redirected(redirect.response.status, location)


class _Resolver(AbstractResolver):
    """Looks names up as for REST: aiohttp's own would wait in asyncio's few shared threads."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await Background(lambda: resolve(host, port)).wait_async()
        return [
            ResolveResult(
                hostname=host, host=address[0], port=port, family=kind, proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, address in found
            if family in (socket.AF_UNSPEC, kind)
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is kept."""


class PushSocket:
    """One connection; :func:`connect` makes it. For one reader.

    Attributes:
        address: where it leads, for messages.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        channel: "aiohttp.ClientWebSocketResponse[Any]",
        address: str,
        max_bytes: int,
    ) -> None:
        self.address = address
        self._session = session
        self._socket = channel
        self._max_bytes = max_bytes

    async def send(self, text: str) -> None:
        """Send one message.

        Raises:
            TransientError: the connection is over.
        """
        try:
            await self._socket.send_str(text)
        except (aiohttp.ClientError, OSError) as error:
            raise self._over(_reason(error)) from None

    async def receive(self) -> bytes:
        """The next message, decompressed if it is gzip.

        Raises:
            TransientError: the connection is over.
            BadResponse: the message is larger than the cap, or its compression is damaged.
        """
        message = await self._socket.receive()
        match message.type:
            case aiohttp.WSMsgType.BINARY | aiohttp.WSMsgType.TEXT:
                data = message.data
                return self._read(data.encode() if isinstance(data, str) else data)
            case aiohttp.WSMsgType.ERROR:
                raise self._unreadable(message.data)
            case _:
                code = self._socket.close_code
                raise self._over(f"closed by the other side ({code or 'without a word'})")

    async def close(self) -> None:
        """Hang up, saying goodbye if the other side still listens."""
        try:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                # A TimeoutError is an OSError. A peer that does not read never answers this.
                async with asyncio.timeout(2 * _CLOSE_SECONDS):
                    await self._socket.close()
        finally:
            # Even if the goodbye is cut short: what was not sent by now, never will be.
            tcp = self._socket.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                tcp.shutdown(socket.SHUT_RDWR)
            await self._session.close()

    def _read(self, data: bytes) -> bytes:
        encoding = "gzip" if data.startswith(_GZIP) else ""
        body, defect = decompressed(data, encoding, self._max_bytes)
        if defect is not None:
            raise BadResponse(defect)
        return body

    def _unreadable(self, error: object) -> BaseError | TransientError:
        if isinstance(error, aiohttp.WebSocketError):
            if error.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                return BadResponse(f"the message is larger than {self._max_bytes} bytes")
            return BadResponse(f"the message is no WebSocket frame: {_reason(error)}")
        return self._over(str(error))

    def _over(self, reason: str) -> TransientError:
        return TransientError(NetworkError(f"{self.address}: the connection is over: {reason}"))


async def connect(
    url: str,
    *,
    settings: ConnectionSettings,
    headers: Mapping[str, str],
    http_exceptions: Mapping[str, type[BaseError]],
    max_bytes: int,
    timeout_ms: float,
) -> PushSocket:
    """Open the push channel.

    Args:
        url: ``wss://…``, or ``ws://…`` to this machine; nothing secret is in it.
        settings: certificates, which are verified, and an HTTP proxy.
        headers: sent with the handshake.
        http_exceptions: ccxt's ``Exchange.httpExceptions``, by HTTP status.
        max_bytes: the largest message, before and after decompression.
        timeout_ms: for connecting.

    Raises:
        TransientError: it could not be reached, or was refused for the moment.
        BaseError: it was refused for good.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=settings.tls_context(), resolver=_Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        trace_configs=[trace],
    )
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            channel = await session.ws_connect(
                yarl.URL(url, encoded=True),
                headers=dict(headers),
                proxy=settings.proxy,
                # Messages have their own compression; a second one would need a second cap.
                compress=0,
                max_msg_size=max_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
            )
    except BaseException as error:
        await session.close()
        failure = _connect_failure(error, url, http_exceptions, timeout_ms)
        if failure is None:
            raise
    else:
        return PushSocket(session, channel, url, max_bytes)
    raise failure


def _connect_failure(
    error: BaseException,
    url: str,
    http_exceptions: Mapping[str, type[BaseError]],
    timeout_ms: float,
) -> BaseError | TransientError | None:
    match error:
        case _Redirected():
            target = urlsplit(error.location)
            where = f"{target.scheme}://{target.netloc}{target.path}"
            return BadResponse(
                f"{url}: HTTP {error.status} redirects to {where if target.netloc else 'nowhere'}; "
                "redirects are never followed: check urls and hostname"
            )
        case aiohttp.WSServerHandshakeError():
            return _refused(error, url, http_exceptions)
        case aiohttp.InvalidURL():
            return ExchangeError(f"{url}: the address cannot be used")
        case TimeoutError():
            return TransientError(
                RequestTimeout(f"{url}: no connection within {timeout_ms:g} ms (timeout)")
            )
        case aiohttp.ClientError() | OSError():
            return network_fault(error, url)
        case _:
            return None


def _refused(
    error: aiohttp.WSServerHandshakeError, url: str, http_exceptions: Mapping[str, type[BaseError]]
) -> BaseError | TransientError:
    status = error.status
    if status < HTTPStatus.BAD_REQUEST:
        return BadResponse(f"{url}: HTTP {status} instead of a WebSocket: {error.message}")
    kind = http_exceptions.get(str(status), ExchangeError)
    failure = kind(f"{url}: HTTP {status} instead of a WebSocket")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        return TransientError(failure)
    return failure


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
