"""Keeps a tested bot from contacting anything beyond this machine."""

import ipaddress
import sys
from typing import Any


def stay_on_this_machine() -> None:
    """Make every lookup of, or connection to, another machine fail, in any library.

    Raises:
        ConnectionRefusedError: in the code that tried; it names the address.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if host and not _is_loopback(host):
            raise ConnectionRefusedError(f"{host} is not on this machine")

    sys.addaudithook(refuse)


def _is_loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
