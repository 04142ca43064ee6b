"""httpx's transport seam, in both directions.

:class:`WireTransport` and :class:`AsyncWireTransport` let any ``httpx.Client`` send over this
package's connections. :func:`given` lets an exchange send through any httpx transport
(``options["transport"]``). Exchanges use neither by default, so httpx is imported only for them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, cast

import httpx

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.body import MAX_RESPONSE_BYTES, too_large_text
from sunx_adapter.wire.connections import Connections
from sunx_adapter.wire.route import GetRequest, UnsendableError
from sunx_adapter.wire.settings import ConnectionSettings
from sunx_adapter.wire.tasks import TaskConnections
from sunx_adapter.wire.threads import ThreadConnections, run, seconds_left

_NO_TIMEOUT: Final = 1e9
_KINDS: Final = ("connect", "read", "write", "pool")
_WRITTEN_HERE: Final = ("host", "content-length")


async def _fetch(connections: Connections, request: httpx.Request) -> httpx.Response:
    if request.method != "GET" or request.headers.get("content-length", "0") != "0":
        raise httpx.UnsupportedProtocol("only GET requests without a body are sent")
    headers = {name: text for name, text in request.headers.items() if name not in _WRITTEN_HERE}
    url = request.url
    address = f"{url.scheme}://{url.netloc.decode()}"
    plain = GetRequest(address + url.raw_path.decode(), headers)
    try:
        answer = await connections.fetch(
            address,
            request.extensions.get("owner", ""),
            _always(plain),
            deadline=_deadline(request),
            limit=MAX_RESPONSE_BYTES,
        )
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from None
    except UnsendableError as error:
        raise httpx.LocalProtocolError(str(error), request=request) from None
    except OSError as error:
        raise httpx.NetworkError(str(error), request=request) from None
    if answer.too_large:
        raise httpx.NetworkError(too_large_text(MAX_RESPONSE_BYTES))
    return httpx.Response(
        answer.status, headers=answer.raw_headers, stream=httpx.ByteStream(answer.body)
    )


def _always(request: GetRequest) -> Callable[[], Awaitable[GetRequest]]:
    async def prepare() -> GetRequest:
        return request

    return prepare


def _deadline(request: httpx.Request) -> float:
    seconds = [value for value in request.extensions.get("timeout", {}).values() if value]
    return time.monotonic() + min(seconds, default=_NO_TIMEOUT)


class WireTransport(httpx.BaseTransport):
    """For ``httpx.Client(transport=…)``: GET requests, each answer read whole.

    The shortest of httpx's timeouts limits the time for the whole answer. The request extension
    ``"owner"`` names the owner of the connections to use; owners share none.
    """

    def __init__(self, settings: ConnectionSettings | None = None) -> None:
        self._connections = ThreadConnections(settings or ConnectionSettings())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its whole answer.

        Raises:
            httpx.TransportError: there is no answer, or the request cannot be sent.
        """
        return run(_fetch(self._connections, request))

    def close(self) -> None:
        """Close all connections."""
        self._connections.close()


class AsyncWireTransport(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient(transport=…)``."""

    def __init__(self, settings: ConnectionSettings | None = None) -> None:
        self._connections = TaskConnections(settings or ConnectionSettings())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its whole answer.

        Raises:
            httpx.TransportError: there is no answer, or the request cannot be sent.
        """
        try:
            async with asyncio.timeout(_deadline(request) - time.monotonic()):
                return await _fetch(self._connections, request)
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error), request=request) from None

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        await self._connections.aclose()


class GivenAnswer(NamedTuple):
    """The answer of an httpx transport; see :class:`~sunx_adapter.wire.answer.RawAnswer`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    too_large: bool


class GivenTransport:
    """Sends over a user's httpx transport, which the user closes."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    async def fetch(
        self,
        _address: str,
        _owner: str,
        prepare: Callable[[], Awaitable[GetRequest]],
        *,
        deadline: float,
        limit: int,
    ) -> GivenAnswer:
        """See :meth:`sunx_adapter.wire.connections.Connections.fetch`."""
        url, headers = await prepare()
        timeout = dict.fromkeys(_KINDS, seconds_left(deadline))
        request = httpx.Request("GET", url, headers=headers, extensions={"timeout": timeout})
        body = bytearray()
        try:
            response = await self._handle(request)
            try:
                async for piece in self._pieces(response):
                    seconds_left(deadline)
                    body += piece
                    if len(body) > limit:
                        break
            finally:
                await self._close(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failure(error) from error
        too_large = len(body) > limit
        given = b"" if too_large else bytes(body)
        return GivenAnswer(response.status_code, response.headers, given, too_large)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = self._transport.handle_request(request)
        return response

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for piece in cast("httpx.SyncByteStream", response.stream):
            yield piece

    async def _close(self, response: httpx.Response) -> None:
        response.close()


class AsyncGivenTransport(GivenTransport):
    """The same for an asynchronous transport."""

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._transport.handle_async_request(request)
        return response

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for piece in cast("httpx.AsyncByteStream", response.stream):
            yield piece

    async def _close(self, response: httpx.Response) -> None:
        await response.aclose()


def given(transport: object, *, asynchronous: bool) -> GivenTransport:
    """A user's transport, for an exchange.

    Raises:
        TypeError: it is a transport of the wrong kind, or none.
    """
    kind = httpx.AsyncBaseTransport if asynchronous else httpx.BaseTransport
    if not isinstance(transport, kind):
        raise TypeError(f"it must be an httpx.{kind.__name__} here")
    return AsyncGivenTransport(transport) if asynchronous else GivenTransport(transport)


def _failure(error: httpx.HTTPError | httpx.InvalidURL) -> Exception:
    text = str(error) or type(error).__name__
    match error:
        case httpx.TimeoutException():
            return TimeoutError(text)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return UnsendableError(f"the address cannot be used: {text}")
        case httpx.LocalProtocolError():
            return UnsendableError(f"the request cannot be sent: {text}")
        case _:
            return WireError(text)
