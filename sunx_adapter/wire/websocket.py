"""The push channel's connection: aiohttp's WebSocket client, with bounded messages."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from sunx_adapter.wire.answer import DeclinedError, WireError
from sunx_adapter.wire.background import Background
from sunx_adapter.wire.body import decompressed
from sunx_adapter.wire.dial import resolve
from sunx_adapter.wire.route import UnsendableError
from sunx_adapter.wire.settings import ConnectionSettings

_GZIP: Final = b"\x1f\x8b"
_CLOSE_SECONDS: Final = 0.5
"""How long to wait for the peer's close frame."""


async def _refuse_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    redirect: aiohttp.TraceRequestRedirectParams,
) -> None:
    # aiohttp's WebSocket client always follows redirects; the login would be sent elsewhere.
    location = redirect.response.headers.get("Location", "")
    redirect.response.close()
    raise DeclinedError("a redirect", redirect.response.status, location)


class _Resolver(AbstractResolver):
    """Looks names up as for REST: aiohttp's resolver would block asyncio's few threads."""

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
        """Nothing to close."""


class PushSocket:
    """One connection, made by :func:`connect`, for one reader.

    Attributes:
        address: the URL, for messages.
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
            WireError: the connection has ended.
        """
        try:
            await self._socket.send_str(text)
        except (aiohttp.ClientError, OSError) as error:
            raise self._ended(_reason(error)) from None

    async def receive(self) -> bytes:
        """The next message, decompressed if it is gzip.

        Raises:
            WireError: the connection has ended.
            ValueError: the message is too large or invalid.
        """
        message = await self._socket.receive()
        data = message.data
        match message.type:
            case aiohttp.WSMsgType.BINARY | aiohttp.WSMsgType.TEXT:
                data = data.encode() if isinstance(data, str) else data
                encoding = "gzip" if data.startswith(_GZIP) else ""
                body, defect = decompressed(data, encoding, self._max_bytes)
                if defect is not None:
                    raise ValueError(defect)
                return body
            case aiohttp.WSMsgType.ERROR if not isinstance(data, aiohttp.WebSocketError):
                raise self._ended(str(data))
            case aiohttp.WSMsgType.ERROR if data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                raise ValueError(f"the message is larger than {self._max_bytes} bytes")
            case aiohttp.WSMsgType.ERROR:
                raise ValueError(f"the message is not a WebSocket frame: {_reason(data)}")
            case _:
                code = self._socket.close_code
                raise self._ended(f"closed by the other side ({code or 'without a reason'})")

    async def close(self) -> None:
        """Close the connection, with a close frame if the peer still reads."""
        try:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                # A TimeoutError is an OSError. A peer that does not read never answers this.
                async with asyncio.timeout(2 * _CLOSE_SECONDS):
                    await self._socket.close()
        finally:
            # Even if closing was interrupted, so that nothing more is sent.
            tcp = self._socket.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                tcp.shutdown(socket.SHUT_RDWR)
            await self._session.close()

    def _ended(self, reason: str) -> WireError:
        return WireError(f"{self.address}: the connection ended: {reason}")


async def connect(
    url: str, *, settings: ConnectionSettings, headers: Mapping[str, str], max_bytes: int
) -> PushSocket:
    """Open the push channel. The caller limits the time.

    Args:
        url: ``wss://…``, or ``ws://…`` to this machine; it holds no secret.
        settings: certificates, which are verified, and an HTTP proxy.
        headers: sent with the handshake.
        max_bytes: the largest message, before and after decompression.

    Raises:
        OSError: the peer cannot be reached.
        DeclinedError: the peer answered with HTTP.
        UnsendableError: the address cannot be used.
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
    channel = None
    try:
        channel = await session.ws_connect(
            yarl.URL(url, encoded=True),
            headers=dict(headers),
            proxy=settings.proxy,
            # The venue compresses messages itself; this second compression would need a limit, too.
            compress=0,
            max_msg_size=max_bytes,
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
        )
        return PushSocket(session, channel, url, max_bytes)
    except aiohttp.WSServerHandshakeError as error:
        raise DeclinedError(error.message, error.status) from None
    except aiohttp.InvalidURL:
        raise UnsendableError("the address cannot be used") from None
    except aiohttp.ClientError as error:
        if isinstance(error, OSError):
            raise
        raise WireError(_reason(error)) from None
    finally:
        if channel is None:
            await session.close()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
