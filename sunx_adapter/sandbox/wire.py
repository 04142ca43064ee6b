"""Faults that show on the wire only: no answer, half of one, one that drips, no HTTP at all."""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sunx_adapter.sandbox.answers import status_phrase
from sunx_adapter.sandbox.faults import Fault, FaultKind
from sunx_adapter.sandbox.port import Port

UNANSWERED: Final = frozenset(
    {FaultKind.REFUSE, FaultKind.RESET, FaultKind.SILENCE, FaultKind.GARBAGE}
)
"""The kinds that send no HTTP status."""

_GARBAGE: Final = bytes(range(256)) * 4
_DROP_UNSENT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

Send = Callable[[asyncio.Transport], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wire:
    """What a running sandbox serves on.

    Attributes:
        port: where connections come in.
        ending: set when the sandbox closes; nothing may wait any longer then.
    """

    port: Port
    ending: asyncio.Event

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait that long, or without end; true if the sandbox closes."""
        try:
            async with asyncio.timeout(seconds):
                await self.ending.wait()
        except TimeoutError:
            return False
        return True


class _Misdelivery(web.StreamResponse):
    """Writes to the connection what HTTP does not know; the connection ends with it."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self.force_close()
        self._send = send

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send everything; there is no head of its own."""
        if request.transport is not None:
            await self._send(request.transport)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing more."""


async def deliver(response: web.Response, fault: Fault | None, wire: Wire) -> web.StreamResponse:
    """What goes out in place of a response.

    Args:
        response: as it would go out.
        fault: a kind that is another answer changes nothing here.
        wire: what the sandbox serves on.
    """
    match fault and fault.kind:
        case FaultKind.REFUSE:
            assert fault is not None
            if seconds := float(fault.value):
                await wire.port.refuse(seconds)
            return _Misdelivery(_nothing)
        case FaultKind.RESET:
            return _Misdelivery(_reset)
        case FaultKind.SILENCE:
            return _Misdelivery(lambda _: _silence(wire))
        case FaultKind.GARBAGE:
            return _Misdelivery(_bytes(_GARBAGE))
        case FaultKind.CUT:
            head, body = _as_bytes(response)
            return _Misdelivery(_bytes(head + body[: len(body) // 2]))
        case FaultKind.DRIP:
            assert fault is not None
            return _Misdelivery(_drip(b"".join(_as_bytes(response)), float(fault.value), wire))
        case FaultKind.SLOW:
            assert fault is not None
            await wire.wait(float(fault.value))
    return response


async def _nothing(_transport: asyncio.Transport) -> None:
    pass


async def _reset(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_UNSENT)
    transport.abort()


async def _silence(wire: Wire) -> None:
    # A client that goes cancels this.
    await wire.wait()


def _bytes(text: bytes) -> Send:
    async def send(transport: asyncio.Transport) -> None:
        transport.write(text)

    return send


def _drip(text: bytes, seconds: float, wire: Wire) -> Send:
    async def send(transport: asyncio.Transport) -> None:
        for number in range(len(text)):
            transport.write(text[number : number + 1])
            if await wire.wait(seconds) or transport.is_closing():
                return

    return send


def _as_bytes(response: web.Response) -> tuple[bytes, bytes]:
    """Head and body as they go over the wire."""
    body = response.body
    assert isinstance(body, bytes)
    headers: Mapping[str, str] = {**response.headers, "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {response.status} {status_phrase(response.status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode(), body
