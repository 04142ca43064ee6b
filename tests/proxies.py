"""A proxy that tunnels (HTTP CONNECT and SOCKS 5), in threads, with an optional password."""

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faulty import tcp_server

_SOCKS_NO_PASSWORD, _SOCKS_PASSWORD, _SOCKS_IPV4, _SOCKS_NAME = 0, 2, 1, 3


@dataclass
class Proxy:
    """State of a running proxy.

    Attributes:
        port: the port it listens on.
        password: the required ``"user:password"``; empty for none.
        tunnels: ``"host:port"`` of each tunnel it made.
    """

    password: str
    port: int = 0
    tunnels: list[str] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """Open the tunnel that the client asks for, and forward bytes until one side ends."""
        with client, contextlib.suppress(OSError, EOFError):
            first = _receive_exactly(client, 1)
            target = self._socks(client) if first == b"\x05" else self._connect(client, first)
            if target is None:
                return
            self.tunnels.append(f"{target[0]}:{target[1]}")
            with socket.create_connection(target) as server:
                back = threading.Thread(target=_forward, args=(server, client))
                back.start()
                _forward(client, server)
                back.join()

    def _connect(self, client: socket.socket, head: bytes) -> tuple[str, int] | None:
        while not head.endswith(b"\r\n\r\n"):
            head += _receive_exactly(client, 1)
        token = base64.b64encode(self.password.encode())
        if self.password and b"Basic " + token not in head:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        return host, int(port)

    def _socks(self, client: socket.socket) -> tuple[str, int] | None:
        methods = _receive_exactly(client, _receive_exactly(client, 1)[0])
        method = _SOCKS_PASSWORD if self.password else _SOCKS_NO_PASSWORD
        if method not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes([5, method]))
        if self.password:
            _receive_exactly(client, 1)
            user = _receive_exactly(client, _receive_exactly(client, 1)[0])
            password = _receive_exactly(client, _receive_exactly(client, 1)[0])
            right = user + b":" + password == self.password.encode()
            client.sendall(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return None
        kind = _receive_exactly(client, 4)[3]
        if kind == _SOCKS_IPV4:
            host = socket.inet_ntoa(_receive_exactly(client, 4))
        else:
            assert kind == _SOCKS_NAME
            host = _receive_exactly(client, _receive_exactly(client, 1)[0]).decode()
        port = int.from_bytes(_receive_exactly(client, 2))
        client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return host, port


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        more = connection.recv(count - len(received))
        if not more:
            raise EOFError
        received += more
    return received


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tunnelling_proxy(password: str = "", tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy on a free port, over TLS if a context is given."""
    proxy = Proxy(password)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            proxy.serve(tls.wrap_socket(client, server_side=True) if tls else client)

    with tcp_server(serve) as proxy.port:
        yield proxy
