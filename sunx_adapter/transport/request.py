"""The request that is sent: an httpx request whose URL is parsed only if somebody asks for it."""

from collections.abc import Mapping
from functools import lru_cache

import httpx


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
        self.headers = _headers(_host(raw_url), tuple(headers.items())).copy()
        self.extensions = {}
        self.stream = httpx.ByteStream(b"")
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

    def __repr__(self) -> str:
        # Without the query, which holds the key and the signature.
        return f"<SignedRequest('GET', {self.raw_url.partition('?')[0]!r})>"


def request_url(request: httpx.Request) -> str:
    """The URL of any request as text."""
    return request.raw_url if isinstance(request, SignedRequest) else str(request.url)


def _host(raw_url: str) -> str:
    return raw_url.split("/", 3)[2]


@lru_cache(maxsize=256)
def _headers(host: str, headers: tuple[tuple[str, str], ...]) -> httpx.Headers:
    return httpx.Headers([("Host", host), *headers])
