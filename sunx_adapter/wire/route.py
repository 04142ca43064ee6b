"""Origins, proxies and their handshakes, and the bytes of a request. Pure."""

import base64
import re
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from sunx_adapter.wire.answer import RawAnswer, WireError

Handshake = Generator[bytes, bytes, None]
"""Yields the bytes to send next (perhaps none) and receives the bytes that arrived."""

_URL_CHARACTERS: Final = bytes(range(0x21, 0x7F))
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_TUNNEL_MADE: Final = range(200, 300)


class UnsendableError(ValueError):
    """The request is invalid; another try would not help."""


class ProxyError(WireError):
    """The proxy opened no tunnel."""


class GetRequest(NamedTuple):
    """A GET.

    Attributes:
        url: the encoded URL.
        headers: all headers except ``Host``, which comes from the URL.
        sending: called right before it is written; an exception prevents that.
        sent: called once it is written.
    """

    url: str
    headers: Mapping[str, str]
    sending: Callable[[], object] = lambda: None
    sent: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        # Without the query: it holds the key and the signature.
        return f"GetRequest({self.url.partition('?')[0]!r})"


class Origin(NamedTuple):
    """The other end of a connection."""

    encrypted: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=1024)
def origin_of(address: str) -> Origin:
    """The origin of an address; its path does not matter.

    Raises:
        UnsendableError: the address is not an HTTP URL.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnsendableError("the address is not an HTTP URL")
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return Origin(parts.scheme == "https", parts.hostname, port)


class Proxy:
    """An HTTP or SOCKS 5 proxy.

    Args:
        url: a valid URL, with user name and password percent-encoded.

    Attributes:
        origin: the origin of the proxy itself.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._speaks_http = parts.scheme in ("http", "https")
        self._user = (unquote(parts.username or ""), unquote(parts.password or ""))
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self.origin = Origin(parts.scheme == "https", parts.hostname or "", port)

    @property
    def authorization(self) -> str:
        """The header line for an HTTP proxy with a user; else empty."""
        if not any(self._user):
            return ""
        token = base64.b64encode(":".join(self._user).encode()).decode()
        return f"Proxy-Authorization: Basic {token}\r\n"

    def forwards(self, origin: Origin) -> bool:
        """Whether the proxy forwards requests to this origin instead of opening a tunnel."""
        return self._speaks_http and not origin.encrypted

    def handshake(self, origin: Origin) -> Handshake:
        """Open a tunnel to an origin.

        Raises:
            ProxyError: the proxy opened no tunnel.
        """
        return self._connect(origin) if self._speaks_http else self._socks(origin)

    def _connect(self, origin: Origin) -> Handshake:
        where, answer = origin.authority, RawAnswer(limit=0)
        request = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{self.authorization}\r\n"
        answer.feed((yield request.encode()))
        while not answer.status:  # the tunnel begins after the head (RFC 9110, 9.3.6)
            answer.feed((yield b""))
        if answer.status not in _TUNNEL_MADE:
            raise ProxyError(f"the proxy answered HTTP {answer.status}")

    def _socks(self, origin: Origin) -> Handshake:
        # socksio (the extra "socks") encodes and decodes messages; this method finds their ends.
        from socksio import SOCKSError, socks5  # noqa: PLC0415

        method, kind = socks5.SOCKS5AuthMethod, socks5.SOCKS5AType
        wanted = method.USERNAME_PASSWORD if any(self._user) else method.NO_AUTH_REQUIRED
        received = bytearray()
        try:
            received += yield socks5.SOCKS5AuthMethodsRequest([wanted]).dumps()
            chosen = socks5.SOCKS5AuthReply.loads((yield from _exactly(received, 2)))
            if chosen.method != wanted:
                raise ProxyError("the proxy requires another kind of login")
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
            raise ProxyError(f"the proxy does not speak SOCKS 5: {error}") from None
        if reply.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
            said = reply.reply_code.name.replace("_", " ").lower()
            raise ProxyError(f"the proxy could not connect: {said}")
        if received:
            raise ProxyError("the proxy sent more than its reply")


@lru_cache(maxsize=64)
def proxy_at(url: str | None) -> Proxy | None:
    """The proxy with this URL; ``None`` for no URL."""
    return Proxy(url) if url else None


def _exactly(received: bytearray, count: int) -> Generator[bytes, bytes, bytes]:
    while len(received) < count:
        received += yield b""
    taken = bytes(received[:count])
    del received[:count]
    return taken


def request_bytes(request: GetRequest, proxy: Proxy | None) -> bytes:
    """A request's bytes, for this proxy or for a direct connection.

    Raises:
        UnsendableError: the address or a header cannot be sent.
    """
    scheme, _, authority, *rest = request.url.partition("#")[0].split("/", 3)
    target, more = "/" + "".join(rest), ""
    if proxy is not None and proxy.forwards(origin_of(f"{scheme}//{authority}")):
        target, more = f"{scheme}//{authority}{target}", proxy.authorization
    if not target.isascii() or target.encode().translate(None, _URL_CHARACTERS):
        raise UnsendableError("the address cannot be used: not all its characters may be in a URL")
    lines = _header_lines((("Host", authority), *request.headers.items()))
    return f"GET {target} HTTP/1.1\r\n{lines}{more}\r\n".encode()


@lru_cache(maxsize=256)
def _header_lines(headers: tuple[tuple[str, str], ...]) -> str:
    # Cached: an exchange's requests differ only in their addresses.
    for name, text in headers:
        if not is_sendable_header(name, text):
            raise UnsendableError(f"the request cannot be sent: the header {name!r} cannot be sent")
    return "".join(f"{name}: {text}\r\n" for name, text in headers)


def is_sendable_header(name: str, text: str) -> bool:
    """Whether a header can be sent: a name by RFC 9110, and plain ASCII text."""
    return bool(_HEADER_NAME.fullmatch(name)) and text.isascii() and text.isprintable()
