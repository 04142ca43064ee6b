"""How bytes leave a server, and what becomes of the connection: right, or wrong on purpose.

Whatever goes wrong below HTTP is a :class:`Delivery`: no byte, half of an answer, one byte now and
then, a reset. It is plain data; :func:`deliver` sends it over an asyncio transport.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

_LINGER_ZERO: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is sent, and how.

    Attributes:
        pieces: the bytes, in the pieces that are written at a time.
        pause: seconds between two pieces.
        end: what becomes of the connection afterwards: it serves the next request (``"keep"``),
            is closed, is reset (RST), or stays open while nothing comes any more (``"stall"``).
        delay: seconds before the first piece.
    """

    pieces: Iterable[bytes] = ()
    pause: float = 0.0
    end: Literal["keep", "close", "reset", "stall"] = "close"
    delay: float = 0.0


def in_pieces(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of that many bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def reset_when_closed(connection: socket.socket) -> None:
    """Closing the connection will reset it (RST), without sending what is still unsent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)


async def deliver(delivery: Delivery, transport: asyncio.WriteTransport) -> None:
    """Send it, and reset. To close or to stall is left to the caller, who owns the connection."""
    if delivery.delay:
        await asyncio.sleep(delivery.delay)
    for number, piece in enumerate(delivery.pieces):
        if number and delivery.pause:
            await asyncio.sleep(delivery.pause)
        if transport.is_closing():
            return
        transport.write(piece)
    if delivery.end == "reset":
        reset_when_closed(transport.get_extra_info("socket"))
        transport.abort()
