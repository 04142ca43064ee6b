"""A proxy that tunnels: HTTP's CONNECT and SOCKS 5, with a password if asked for, in threads."""

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faulty import serving

_SOCKS_NO_PASSWORD, _SOCKS_PASSWORD, _SOCKS_IPV4, _SOCKS_NAME = 0, 2, 1, 3


@dataclass
class Proxy:
    """What a running proxy knows.

    Attributes:
        port: where it listens.
        password: ``"user:password"`` that it asks for; none if empty.
        tunnels: ``"host:port"`` of each tunnel that it made.
    """

    password: str
    port: int = 0
    tunnels: list[str] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """Make the tunnel that the client asks for, and carry until one side ends."""
        with client, contextlib.suppress(OSError, EOFError):
            first = _exactly(client, 1)
            where = self._socks(client) if first == b"\x05" else self._connect(client, first)
            if where is None:
                return
            self.tunnels.append(f"{where[0]}:{where[1]}")
            with socket.create_connection(where) as server:
                back = threading.Thread(target=_carry, args=(server, client))
                back.start()
                _carry(client, server)
                back.join()

    def _connect(self, client: socket.socket, head: bytes) -> tuple[str, int] | None:
        while not head.endswith(b"\r\n\r\n"):
            head += _exactly(client, 1)
        token = base64.b64encode(self.password.encode())
        if self.password and b"Basic " + token not in head:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        return host, int(port)

    def _socks(self, client: socket.socket) -> tuple[str, int] | None:
        methods = _exactly(client, _exactly(client, 1)[0])
        method = _SOCKS_PASSWORD if self.password else _SOCKS_NO_PASSWORD
        if method not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes([5, method]))
        if self.password:
            _exactly(client, 1)
            user = _exactly(client, _exactly(client, 1)[0])
            password = _exactly(client, _exactly(client, 1)[0])
            right = user + b":" + password == self.password.encode()
            client.sendall(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return None
        kind = _exactly(client, 4)[3]
        if kind == _SOCKS_IPV4:
            host = socket.inet_ntoa(_exactly(client, 4))
        else:
            assert kind == _SOCKS_NAME
            host = _exactly(client, _exactly(client, 1)[0]).decode()
        port = int.from_bytes(_exactly(client, 2))
        client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return host, port


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        more = connection.recv(count - len(received))
        if not more:
            raise EOFError
        received += more
    return received


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tunnelling_proxy(password: str = "", tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy on a port of its own, to which one speaks TLS if there is a context."""
    proxy = Proxy(password)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            proxy.serve(tls.wrap_socket(client, server_side=True) if tls else client)

    with serving(serve) as proxy.port:
        yield proxy
