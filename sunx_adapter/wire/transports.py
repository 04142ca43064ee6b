"""httpx transports, in both directions.

:class:`WireTransport` and :class:`AsyncWireTransport` let any ``httpx.Client`` send over this
package's connections. :class:`GivenTransport` lets an exchange send through any httpx transport
(``options["transport"]``). Exchanges use neither by default, so that httpx is imported only if
needed.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

from sunx_adapter.wire.answer import RawAnswer, WireError
from sunx_adapter.wire.background import seconds_left
from sunx_adapter.wire.body import MAX_RESPONSE_BYTES, too_large_text
from sunx_adapter.wire.connections import Connections
from sunx_adapter.wire.route import GetRequest, UnsendableError
from sunx_adapter.wire.settings import ConnectionSettings
from sunx_adapter.wire.tasks import TaskConnections
from sunx_adapter.wire.threads import ThreadConnections, run

_NO_TIMEOUT: Final = 1e9
_KINDS: Final = ("connect", "read", "write", "pool")
_WRITTEN_HERE: Final = ("host", "content-length")


async def _fetch(
    connections: Connections,
    settings: ConnectionSettings,
    request: httpx.Request,
    deadline: float,
    limited: contextlib.AbstractAsyncContextManager[object],
) -> httpx.Response:
    if request.method != "GET" or request.headers.get("content-length", "0") != "0":
        raise httpx.UnsupportedProtocol("only GET requests without a body are sent")
    headers = {name: text for name, text in request.headers.items() if name not in _WRITTEN_HERE}
    address = f"{request.url.scheme}://{request.url.netloc.decode()}"
    plain = GetRequest(address + request.url.raw_path.decode(), headers)

    async def prepare() -> GetRequest:
        return plain

    owner = request.extensions.get("owner", "")
    limit = MAX_RESPONSE_BYTES
    try:
        async with limited:
            answer = await connections.fetch(
                address, owner, prepare, settings=settings, deadline=deadline, limit=limit
            )
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from None
    except UnsendableError as error:
        raise httpx.LocalProtocolError(str(error), request=request) from None
    except OSError as error:
        raise httpx.NetworkError(str(error), request=request) from None
    if answer.too_large:
        raise httpx.NetworkError(too_large_text(limit), request=request)
    stream = httpx.ByteStream(answer.body)
    return httpx.Response(answer.status, headers=answer.raw_headers, stream=stream)


def _deadline(request: httpx.Request) -> float:
    seconds = [value for value in request.extensions.get("timeout", {}).values() if value]
    return time.monotonic() + min(seconds, default=_NO_TIMEOUT)


class WireTransport(httpx.BaseTransport):
    """For ``httpx.Client(transport=…)``: sends GET requests and reads the whole answers.

    The shortest of httpx's timeouts limits the time for the whole answer. The request extension
    ``"owner"`` names the owner of the connections to use; owners never share connections.
    """

    def __init__(self, settings: ConnectionSettings | None = None) -> None:
        self._connections = ThreadConnections()
        self._settings = settings or ConnectionSettings()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its whole answer.

        Raises:
            httpx.TransportError: there is no answer, or the request cannot be sent.
        """
        deadline, unlimited = _deadline(request), contextlib.nullcontext()
        return run(_fetch(self._connections, self._settings, request, deadline, unlimited))

    def close(self) -> None:
        """Close all connections."""
        self._connections.close()


class AsyncWireTransport(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient(transport=…)``."""

    def __init__(self, settings: ConnectionSettings | None = None) -> None:
        self._connections = TaskConnections()
        self._settings = settings or ConnectionSettings()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its whole answer.

        Raises:
            httpx.TransportError: there is no answer, or the request cannot be sent.
        """
        deadline = _deadline(request)
        limited = asyncio.timeout(deadline - time.monotonic())
        return await _fetch(self._connections, self._settings, request, deadline, limited)

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        await self._connections.aclose()


class GivenTransport:
    """Sends over a user's httpx transport, which the user closes.

    Raises:
        TypeError: the object is not a transport, or a transport of the wrong kind.
    """

    def __init__(self, transport: object, *, asynchronous: bool) -> None:
        kind = httpx.AsyncBaseTransport if asynchronous else httpx.BaseTransport
        if not isinstance(transport, kind):
            raise TypeError(f"it must be an httpx.{kind.__name__} here")
        self._transport: Any = transport
        self._asynchronous = asynchronous

    async def fetch(
        self,
        _address: str,
        _owner: str,
        prepare: Callable[[], Awaitable[GetRequest]],
        *,
        settings: ConnectionSettings,  # noqa: ARG002 - the transport has its own
        deadline: float,
        limit: int,
    ) -> RawAnswer:
        """See :meth:`sunx_adapter.wire.connections.Connections.fetch`."""
        url, headers, sending, sent = await prepare()
        timeout = dict.fromkeys(_KINDS, seconds_left(deadline))
        answer = RawAnswer(limit)
        try:
            request = httpx.Request("GET", url, headers=headers, extensions={"timeout": timeout})
            sending()
            if self._asynchronous:
                response = await self._transport.handle_async_request(request)
                sent()
                async with contextlib.aclosing(response):
                    async for piece in response.stream:
                        seconds_left(deadline)
                        answer.on_body(piece)
                        if answer.too_large:
                            break
            else:
                response = self._transport.handle_request(request)
                sent()
                with contextlib.closing(response):
                    for piece in response.stream:
                        seconds_left(deadline)
                        answer.on_body(piece)
                        if answer.too_large:
                            break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failure(error) from error
        answer.begin(response.status_code, response.headers)
        return answer


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
