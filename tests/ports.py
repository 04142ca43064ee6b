"""Ports for programs that must be given one when they start."""

import random
import socket

_NOT_HANDED_OUT = range(20_000, 32_000)
"""No system gives these to a connection or to who asks for any port, so none goes in between."""


def free_port() -> int:
    """A port of this machine that nobody listens on, and that nobody gets by chance."""
    while True:
        port = random.choice(_NOT_HANDED_OUT)  # noqa: S311 - not a secret
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
