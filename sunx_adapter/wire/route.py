"""Where a request goes and how it is written: origins, proxies and their handshakes. Pure."""

import base64
import re
from collections.abc import Generator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from sunx_adapter.wire.answer import Answer, WireError

Handshake = Generator[bytes, bytes, None]
"""Yields what to send next, perhaps nothing, and is sent what arrived."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_TUNNEL_MADE: Final = range(200, 300)


class Unsendable(ValueError):  # noqa: N818 - it says what the request is
    """The request itself is wrong; another try would not help."""


class ProxyError(WireError):
    """The proxy does not make the tunnel."""


class Request(NamedTuple):
    """A GET.

    Attributes:
        url: encoded already.
        headers: all but ``Host``, which comes from the URL.
    """

    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        # Without the query, which holds the key and the signature.
        return f"Request({self.url.partition('?')[0]!r})"


class Origin(NamedTuple):
    """The far end of a connection."""

    encrypted: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=1024)
def origin_of(address: str) -> Origin:
    """The origin of an address, whatever its path.

    Raises:
        Unsendable: it is no HTTP URL.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unsendable("the address is no HTTP URL")
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return Origin(parts.scheme == "https", parts.hostname, port)


class Proxy:
    """An HTTP or SOCKS 5 proxy.

    Args:
        url: checked already; the user's name and password percent-encoded.

    Attributes:
        origin: where the proxy itself is.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._speaks_http = parts.scheme in ("http", "https")
        self._user = (unquote(parts.username or ""), unquote(parts.password or ""))
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self.origin = Origin(parts.scheme == "https", parts.hostname or "", port)

    @property
    def authorization(self) -> str:
        """The header line that an HTTP proxy needs; empty if it needs none."""
        if not any(self._user):
            return ""
        token = base64.b64encode(":".join(self._user).encode()).decode()
        return f"Proxy-Authorization: Basic {token}\r\n"

    def forwards(self, origin: Origin) -> bool:
        """Whether it takes the request itself, instead of making a tunnel."""
        return self._speaks_http and not origin.encrypted

    def handshake(self, origin: Origin) -> Handshake:
        """Asks for a tunnel to an origin.

        Raises:
            ProxyError: it does not make one.
        """
        return self._connect(origin) if self._speaks_http else self._socks(origin)

    def _connect(self, origin: Origin) -> Handshake:
        where, answer = origin.authority, Answer(tunnels=True)
        request = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{self.authorization}\r\n"
        answer.feed((yield request.encode()))
        while not answer.ended:
            answer.feed((yield b""))
        if answer.status not in _TUNNEL_MADE:
            raise ProxyError(f"the proxy answered HTTP {answer.status}")

    def _socks(self, origin: Origin) -> Handshake:
        # Of the extra "socks". It writes and reads the messages; their lengths are counted here.
        from socksio import SOCKSError, socks5  # noqa: PLC0415

        method, kind = socks5.SOCKS5AuthMethod, socks5.SOCKS5AType
        wanted = method.USERNAME_PASSWORD if any(self._user) else method.NO_AUTH_REQUIRED
        received = bytearray()
        try:
            received += yield socks5.SOCKS5AuthMethodsRequest([wanted]).dumps()
            chosen = socks5.SOCKS5AuthReply.loads((yield from _exactly(received, 2)))
            if chosen.method != wanted:
                raise ProxyError("the proxy asks for another kind of login")
            if wanted is method.USERNAME_PASSWORD:
                name, password = (word.encode() for word in self._user)
                received += yield socks5.SOCKS5UsernamePasswordRequest(name, password).dumps()
                login = yield from _exactly(received, 2)
                if not socks5.SOCKS5UsernamePasswordReply.loads(login).success:
                    raise ProxyError("the proxy refused its user name or password")
            received += yield socks5.SOCKS5CommandRequest.from_address(
                socks5.SOCKS5Command.CONNECT, (origin.host, origin.port)
            ).dumps()
            head = yield from _exactly(received, 5)
            lengths = {kind.IPV4_ADDRESS: 4, kind.IPV6_ADDRESS: 16, kind.DOMAIN_NAME: head[4] + 1}
            rest = yield from _exactly(received, lengths[kind(head[3:4])] + 1)
            reply = socks5.SOCKS5Reply.loads(head + rest)
        except (SOCKSError, ValueError) as error:
            raise ProxyError(f"the proxy speaks no SOCKS 5: {error}") from None
        if reply.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
            said = reply.reply_code.name.replace("_", " ").lower()
            raise ProxyError(f"the proxy could not connect: {said}")
        if received:
            raise ProxyError("the proxy sent more than its reply")


def _exactly(received: bytearray, count: int) -> Generator[bytes, bytes, bytes]:
    while len(received) < count:
        received += yield b""
    taken = bytes(received[:count])
    del received[:count]
    return taken


def written(request: Request, proxy: Proxy | None) -> bytes:
    """A request's bytes.

    Args:
        request: the request.
        proxy: what it goes through, if anything.

    Raises:
        Unsendable: its address or one of its headers cannot be sent.
    """
    scheme, _, authority, *rest = request.url.partition("#")[0].split("/", 3)
    target, more = "/" + "".join(rest), ""
    if proxy is not None and proxy.forwards(origin_of(f"{scheme}//{authority}")):
        target, more = f"{scheme}//{authority}{target}", proxy.authorization
    if not target.isascii() or not target.isprintable() or " " in target:
        raise Unsendable("the address cannot be used: it has letters that no URL has")
    lines = _lines((("Host", authority), *request.headers.items()))
    return f"GET {target} HTTP/1.1\r\n{lines}{more}\r\n".encode()


@lru_cache(maxsize=256)
def _lines(headers: tuple[tuple[str, str], ...]) -> str:
    # Cached, since requests differ in their addresses alone.
    for name, text in headers:
        if not is_sendable_header(name, text):
            raise Unsendable(f"the request cannot be sent: the header {name!r} cannot be sent")
    return "".join(f"{name}: {text}\r\n" for name, text in headers)


def is_sendable_header(name: str, text: str) -> bool:
    """Whether a header can be sent as it is: a name by RFC 9110, and plain ASCII text."""
    return bool(_HEADER_NAME.fullmatch(name)) and text.isascii() and text.isprintable()
