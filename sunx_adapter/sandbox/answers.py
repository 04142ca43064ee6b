"""HTTP requests and answers as plain data, and the bodies that the venues send. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import msgspec

SUCCESS_CODE: Final = 200
SUCCESS_STATUS: Final = "ok"
TOO_MANY_READS: Final = 1032

JSON_TYPE: Final = "application/json;charset=utf-8"
HTML_TYPE: Final = "text/html"

RefusalShape = Literal["status", "message", "msg", "hyphen"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it came in, percent-encoding untouched.

    Attributes:
        host: the Host header, or empty.
        milliseconds: the venue's time when it came, ms UTC.
    """

    method: str
    path: str
    query: str = field(repr=False)
    host: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What goes back, before compression and the headers that every answer has.

    Attributes:
        status: the HTTP status.
        body: the bytes.
        code: what the body says: the venue's code, ``"ok"``, or the HTTP status of a page.
        uid: of the account that signed, if one did.
        headers: the content type, and the rate limit's on signed answers.
    """

    status: int
    body: bytes = field(repr=False)
    code: int | str
    uid: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether the venue did what was asked."""
        return self.code in (SUCCESS_CODE, SUCCESS_STATUS)


class Refused(Exception):  # noqa: N818 - an outcome, not an error of this program
    """The venue refuses a request.

    Attributes:
        code: of the venues' error lists.
        message: the text beside it.
        shape: ``"status"``: ``{"status":"error","err_code":…,"err_msg":…,"ts":…}``;
            ``"message"``: ``{"code":…,"message":…}``;
            ``"msg"``: ``{"code":"…","msg":…,"data":null,"ts":"…"}``;
            ``"hyphen"``: ``{"status":"error","err-code":"…","err-msg":…,"data":null}``.
            All four have been seen.
    """

    def __init__(self, code: int | str, message: str, shape: RefusalShape = "message") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.shape: RefusalShape = shape


def too_many_reads() -> Refused:
    """The refusal of a read beyond the limit."""
    return Refused(TOO_MANY_READS, "The number of access exceeded limit")


def refusal_answer(refusal: Refused, request: HttpRequest) -> HttpAnswer:
    """A refusal in its shape; HTTP 429 where it is for too many reads, else 200."""
    code, message, milliseconds = refusal.code, refusal.message, request.milliseconds
    body: dict[str, object]
    match refusal.shape:
        case "status":
            body = {"status": "error", "err_code": code, "err_msg": message, "ts": milliseconds}
        case "hyphen":
            body = {"status": "error", "err-code": code, "err-msg": message, "data": None}
        case "msg":
            body = {"code": str(code), "msg": message, "data": None, "ts": str(milliseconds)}
        case "message":
            body = {"code": code, "message": message}
    status = HTTPStatus.TOO_MANY_REQUESTS if code == TOO_MANY_READS else HTTPStatus.OK
    return json_answer(body, code, status)


def json_answer(body: object, code: int | str, status: int = HTTPStatus.OK) -> HttpAnswer:
    """A JSON text as the venues write it, without blanks."""
    text = msgspec.json.encode(body)
    return HttpAnswer(status, text, code, headers={"Content-Type": JSON_TYPE})


def page(status: int, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    """The page of the web server in front of a venue, for what the venue itself never sees."""
    title = f"{status:d} {status_phrase(status)}"
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return HttpAnswer(
        status, body.encode(), status, headers={"Content-Type": HTML_TYPE, **(headers or {})}
    )


def status_phrase(status: int) -> str:
    """``"Bad Gateway"``; empty for a status that HTTP does not know."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
