"""HTTP requests and answers as plain data, and the bodies of the venues' errors. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import responses
from typing import Final, Self

import msgspec

SUCCESS: Final = (200, "ok")
UNKNOWN_KEY: Final = 403
_TOO_MANY_READS: Final = 1032
_JSON: Final = {"Content-Type": "application/json;charset=utf-8"}
_SAME_IN_V5: Final = frozenset({1003, _TOO_MANY_READS, *range(12001, 12009)})
"""Codes that v5 sends in the same format as SunX: too many reads, a failed signature check."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A received request, its percent-encoding unchanged.

    ``host`` is the Host header, or empty; ``time_ms`` is the venue's time, ms UTC.
    """

    method: str
    path: str
    query: str = field(repr=False)
    host: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class SandboxAnswer:
    """An answer, before compression and without the headers that every answer has.

    Attributes:
        status: the HTTP status.
        code: the venue's code in the body, ``"ok"``, or the HTTP status if the body is a page.
        body: the bytes.
        headers: the content type; on answers to signed requests also the read limit.
        uid: user id of the account that signed the request; ``None`` without a valid signature.
    """

    status: int
    code: int | str
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    uid: str | None = None


@dataclass(eq=False)
class Refused(Exception):  # noqa: N818 - an outcome, not an error of this program
    """The venue refuses a request, with a code from its error lists and a message."""

    code: int | str
    message: str

    @classmethod
    def too_many_reads(cls) -> Self:
        """The refusal of a read above the limit."""
        return cls(_TOO_MANY_READS, "The number of access exceeded limit")

    def answer(self, request: HttpRequest) -> SandboxAnswer:
        """The refusal in its code's format on this path; HTTP 429 for too many reads, else 200."""
        code, message, time_ms = self.code, self.message, request.time_ms
        body: dict[str, object] = {"code": code, "message": message}
        if isinstance(code, str):
            body = {"status": "error", "err-code": code, "err-msg": message, "data": None}
        elif code == UNKNOWN_KEY or not request.path.startswith(("/v5/", "/sapi/")):
            # The format of the older API, to which all other paths belong.
            body = {"status": "error", "err_code": code, "err_msg": message, "ts": time_ms}
        elif request.path.startswith("/v5/") and code not in _SAME_IN_V5:
            body = {"code": str(code), "msg": message, "data": None, "ts": str(time_ms)}
        too_many = code == _TOO_MANY_READS
        return json_answer(body, code, HTTPStatus.TOO_MANY_REQUESTS if too_many else HTTPStatus.OK)


def json_answer(body: object, code: int | str, status: int = HTTPStatus.OK) -> SandboxAnswer:
    """An answer with a JSON body, without whitespace, as the venues send it."""
    return SandboxAnswer(status, code, msgspec.json.encode(body), _JSON)


def page(status: int, headers: Mapping[str, str] | None = None) -> SandboxAnswer:
    """An HTML error page of the web server in front of a venue."""
    title = f"{status:d} {responses.get(status, '')}"
    body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\r\n"
    headers = {"Content-Type": "text/html", **(headers or {})}
    return SandboxAnswer(status, status, body.encode(), headers)
