"""How bytes are sent: in pieces, with delays, and with different ends of the connection."""

import asyncio
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import responses
from typing import Final, Literal

_LINGER_ZERO: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bytes and how they are sent.

    Attributes:
        pieces: the bytes; each piece is one write.
        pause: seconds between two pieces.
        end: what happens to the connection afterwards: it serves the next request (``"keep"``),
            is closed, is reset (RST), or stays open and silent (``"stall"``).
    """

    pieces: Iterable[bytes] = ()
    pause: float = 0.0
    end: Literal["keep", "close", "reset", "stall"] = "close"


def whole(data: bytes) -> Delivery:
    """One piece, after which the connection serves the next request."""
    return Delivery([data], end="keep")


def in_pieces(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of ``size`` bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def http_head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an HTTP answer."""
    lines = (f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} {responses.get(status, '')}\r\n{''.join(lines)}\r\n"
    return head.encode("latin-1")


def reset_when_closed(connection: socket.socket) -> None:
    """Make closing the connection reset it (RST) and discard unsent bytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)


def reset(transport: asyncio.WriteTransport) -> None:
    """Reset a connection (RST)."""
    reset_when_closed(transport.get_extra_info("socket"))
    transport.abort()
