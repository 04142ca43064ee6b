"""Connecting to the quickest of a host's addresses (Happy Eyeballs, RFC 8305).

It blocks; both threads and tasks run it in :mod:`~sunx_adapter.wire.background`.
"""

import errno
import itertools
import os
import selectors
import socket
import time
from typing import Any, Final

from sunx_adapter.wire.answer import WireError
from sunx_adapter.wire.background import Background
from sunx_adapter.wire.route import Origin

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""The head start of an address before the next one is tried too."""

_IN_PROGRESS: Final = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}

Address = tuple[int, Any]
"""Family and what :meth:`socket.socket.connect` takes."""


def dialled(origin: Origin, deadline: float) -> Background[socket.socket]:
    """Begin to connect to an origin, until a deadline on :func:`time.monotonic`'s clock."""
    return Background(lambda: _dial(origin, deadline), discard=lambda late: late.close())


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, the families alternating. Blocks as long as the system's resolver.

    Raises:
        WireError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
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
    trying: set[socket.socket] = set()
    try:
        with selectors.DefaultSelector() as selector:
            while addresses or trying:
                if addresses:
                    try:
                        begun = _begin(*addresses.pop(0))
                    except OSError as error:
                        failure = error
                        continue
                    trying.add(begun)
                    selector.register(begun, selectors.EVENT_WRITE)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the deadline has passed")
                for key, _ in selector.select(min(left, _NEXT_ADDRESS_SECONDS)):
                    tried: Any = key.fileobj
                    selector.unregister(tried)
                    trying.discard(tried)
                    number = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not number:
                        tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        return tried  # type: ignore[no-any-return]
                    tried.close()
                    failure = OSError(number, os.strerror(number))
    finally:
        for unused in trying:
            unused.close()
    raise failure


def _begin(family: int, address: Any) -> socket.socket:
    begun = socket.socket(family, socket.SOCK_STREAM)
    begun.setblocking(False)
    number = begun.connect_ex(address)
    if number and number not in _IN_PROGRESS:
        begun.close()
        raise OSError(number, os.strerror(number))
    return begun
