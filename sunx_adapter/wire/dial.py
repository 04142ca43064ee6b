"""Connects to the host's address that answers first (Happy Eyeballs, RFC 8305).

Connecting blocks, so threads and tasks run it in :mod:`~sunx_adapter.wire.background`.
"""

import contextlib
import itertools
import os
import selectors
import socket
from typing import Any, Final

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.background import Background, seconds_left
from sunx_adapter.wire.route import Origin

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""The head start of an address before the next one is tried, too."""

Address = tuple[int, Any]
"""An address family, and the argument for :meth:`socket.socket.connect`."""


def dial_in_background(origin: Origin, deadline: float) -> Background[socket.socket]:
    """Start to connect to an origin, with a deadline on :func:`time.monotonic`'s clock."""
    return Background(lambda: _dial(origin, deadline), discard=lambda late: late.close())


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, with alternating families. Blocks as the system's resolver does.

    Raises:
        WireError: the host has no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise WireError(f"{host}: {reason}") from None
    families = dict.fromkeys(family for family, *_ in found)
    columns = [[(f, address) for f, *_, address in found if f == family] for family in families]
    return [each for row in itertools.zip_longest(*columns) for each in row if each is not None]


def _dial(origin: Origin, deadline: float) -> socket.socket:
    try:
        return _first(resolve(origin.host, origin.port), deadline)
    except TimeoutError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WireError(f"cannot connect to {origin.authority}: {reason}") from None


def _first(addresses: list[Address], deadline: float) -> socket.socket:
    """Connect to the first address that answers."""
    failure: OSError = WireError("the host has no address")
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as begun:
        while addresses or selector.get_map():
            if addresses:
                family, address = addresses.pop(0)
                try:
                    trying = begun.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    trying.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        trying.connect(address)
                except OSError as error:
                    failure = error
                    continue
                selector.register(trying, selectors.EVENT_WRITE)
            for key, _ in selector.select(min(seconds_left(deadline), _NEXT_ADDRESS_SECONDS)):
                tried: Any = key.fileobj
                selector.unregister(tried)
                if number := tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failure = OSError(number, os.strerror(number))
                else:
                    tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return socket.socket(fileno=tried.detach())  # the others are closed
    raise failure
