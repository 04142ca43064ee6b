"""HTTP requests and answers as plain data, and the bodies of the venues' errors. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, Self

import msgspec

from sunx_adapter.sandbox.delivery import PHRASES

SUCCESS_CODE: Final = 200
SUCCESS_STATUS: Final = "ok"
TOO_MANY_READS: Final = 1032

JSON_TYPE: Final = "application/json;charset=utf-8"
HTML_TYPE: Final = "text/html"

RefusalShape = Literal["status", "message", "msg", "hyphen"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A received request, its percent-encoding unchanged.

    Attributes:
        host: the Host header, or empty.
        time_ms: when it arrived, by the venue's clock, ms UTC.
    """

    method: str
    path: str
    query: str = field(repr=False)
    host: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, before compression and without the headers that every answer has.

    Attributes:
        status: the HTTP status.
        body: the bytes.
        code: the venue's code in the body, ``"ok"``, or the HTTP status if the body is a page.
        uid: user id of the account that signed the request; ``None`` without a valid signature.
        headers: the content type; on answers to signed requests also the read limit.
    """

    status: int
    body: bytes = field(repr=False)
    code: int | str
    uid: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether it reports success."""
        return self.code in (SUCCESS_CODE, SUCCESS_STATUS)


class Refused(Exception):  # noqa: N818 - an outcome, not an error of this program
    """The venue refuses a request.

    Attributes:
        code: a code from the venues' error lists.
        message: the error message.
        shape: the format of the body;
            ``"status"``: ``{"status":"error","err_code":…,"err_msg":…,"ts":…}``;
            ``"message"``: ``{"code":…,"message":…}``;
            ``"msg"``: ``{"code":"…","msg":…,"data":null,"ts":"…"}``;
            ``"hyphen"``: ``{"status":"error","err-code":"…","err-msg":…,"data":null}``.
            The venues send all four.
    """

    def __init__(self, code: int | str, message: str, shape: RefusalShape = "message") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.shape: RefusalShape = shape

    @classmethod
    def too_many_reads(cls) -> Self:
        """The refusal of a read above the limit."""
        return cls(TOO_MANY_READS, "The number of access exceeded limit")

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """The refusal in its shape, with HTTP status 429 for too many reads, else 200."""
        code, message, time_ms = self.code, self.message, request.time_ms
        body: dict[str, object]
        match self.shape:
            case "status":
                body = {"status": "error", "err_code": code, "err_msg": message, "ts": time_ms}
            case "hyphen":
                body = {"status": "error", "err-code": code, "err-msg": message, "data": None}
            case "msg":
                body = {"code": str(code), "msg": message, "data": None, "ts": str(time_ms)}
            case "message":
                body = {"code": code, "message": message}
        status = HTTPStatus.TOO_MANY_REQUESTS if code == TOO_MANY_READS else HTTPStatus.OK
        return json_answer(body, code, status)


def json_answer(body: object, code: int | str, status: int = HTTPStatus.OK) -> HttpAnswer:
    """An answer with a JSON body, without whitespace, as the venues send it."""
    text = msgspec.json.encode(body)
    return HttpAnswer(status, text, code, headers={"Content-Type": JSON_TYPE})


def page(status: int, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    """An HTML error page of the web server in front of a venue."""
    title = f"{status:d} {PHRASES.get(status, '')}"
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return HttpAnswer(
        status, body.encode(), status, headers={"Content-Type": HTML_TYPE, **(headers or {})}
    )
