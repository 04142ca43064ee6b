"""The request that is sent: an httpx request that is taken apart only if somebody asks for it."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import httpx

_NO_BODY: Final = httpx.ByteStream(b"")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class SignedRequest(httpx.Request):
    """A GET of a URL that is encoded already.

    To any transport it is an ``httpx.Request`` like others. Parsing a signed URL takes longer
    than signing it, and the transports of this package need the text alone (:attr:`raw_url`).

    Args:
        raw_url: scheme, host, path and query as they are to be sent.
        headers: all of them but ``Host``, which comes from the URL.
    """

    def __init__(self, raw_url: str, headers: Mapping[str, str]) -> None:
        self.raw_url = raw_url
        self.method = "GET"
        self.extensions = {}
        self.stream = _NO_BODY
        self._given = (("Host", raw_url.split("/", 3)[2]), *headers.items())
        self._headers: httpx.Headers | None = None
        self._parsed: httpx.URL | None = None

    @property
    def url(self) -> httpx.URL:
        """The URL; parsed at the first look."""
        if self._parsed is None:
            self._parsed = httpx.URL(self.raw_url)
        return self._parsed

    @url.setter
    def url(self, value: httpx.URL) -> None:
        # A transport around another may send the request elsewhere.
        self._parsed = value
        self.raw_url = str(value)

    @property
    def headers(self) -> httpx.Headers:
        """The headers; made at the first look."""
        if self._headers is None:
            self._headers = httpx.Headers(self._given)
        return self._headers

    @headers.setter
    def headers(self, value: httpx.Headers) -> None:
        self._headers = value

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The headers, names and texts."""
        return self._given if self._headers is None else _fields(self._headers)

    def __repr__(self) -> str:
        # Without the query, which holds the key and the signature.
        return f"<SignedRequest('GET', {self.raw_url.partition('?')[0]!r})>"


def request_url(request: httpx.Request) -> str:
    """The URL of any request as text."""
    return request.raw_url if isinstance(request, SignedRequest) else str(request.url)


def header_lines(request: httpx.Request) -> bytes:
    """The headers of any request as they go over the wire.

    Raises:
        httpx.LocalProtocolError: one cannot be sent.
    """
    return _lines(
        request.fields if isinstance(request, SignedRequest) else _fields(request.headers)
    )


def is_sendable_header(name: str, text: str) -> bool:
    """Whether a header can go over the wire as it is: a name by RFC 9110, and plain ASCII text."""
    return bool(_HEADER_NAME.fullmatch(name)) and text.isascii() and text.isprintable()


def _fields(headers: httpx.Headers) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), text.decode("latin-1")) for name, text in headers.raw)


@lru_cache(maxsize=256)
def _lines(fields: tuple[tuple[str, str], ...]) -> bytes:
    # Cached, since requests differ in their addresses alone.
    for name, text in fields:
        if not is_sendable_header(name, text):
            raise httpx.LocalProtocolError(f"the header {name!r} cannot be sent")
    return "".join(f"{name}: {text}\r\n" for name, text in fields).encode()
