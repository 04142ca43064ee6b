"""Faults that are another answer: the right one in, the wrong one out. No I/O.

What goes wrong below HTTP is in ``wire``.
"""

import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

from sunx_adapter.protocol.errors import RULE_BY_CODE
from sunx_adapter.sandbox.answers import (
    TOO_MANY_READS,
    Answer,
    Quota,
    json_answer,
    json_text,
    page,
    refusal_answer,
)
from sunx_adapter.sandbox.checks import RefusalShape, Refused, Request
from sunx_adapter.sandbox.faults import Fault, FaultKind, Place, parse_place
from sunx_adapter.venue import READ_LIMIT

_MAINTENANCE: Final = "maintain"
_INCORRECT_KEY: Final = "403"
_SIGNATURE_CODES: Final = frozenset({"1003", *map(str, range(12001, 12009))})
"""What the check of a signed request ends with; v5 tells it otherwise than its other errors."""

_MEBIBYTE: Final = 1024 * 1024
_GZIP_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
_RAW_DEFLATE: Final = -zlib.MAX_WBITS


def spoiled(answer: Answer, fault: Fault, request: Request, milliseconds: int) -> Answer | None:
    """The answer that a fault makes of the right one.

    Args:
        answer: the right one.
        fault: a kind that only shows on the wire leaves the answer as it is.
        request: what it answers.
        milliseconds: the time that the venue tells, ms UTC.

    Returns:
        ``None`` if the fault cannot be played: it is for accepted requests and this one is
        refused, or for a place that the answer does not have.
    """
    if fault.rule.accepted_only and not answer.accepted:
        return None
    match fault.kind:
        case FaultKind.HTML:
            other = page(int(fault.value))
        case FaultKind.STATUS:
            other = Answer(int(fault.value), b"", int(fault.value))
        case FaultKind.REDIRECT:
            other = page(HTTPStatus.FOUND, {"Location": _location(fault.value, request)})
        case FaultKind.MAINTENANCE:
            other = maintenance()
        case FaultKind.RATELIMIT:
            other = too_many(float(fault.value))
        case FaultKind.CODE:
            other = error(fault.value, request.path, milliseconds)
        case FaultKind.TRUNCATED:
            return replace(answer, body=answer.body[: len(answer.body) // 2])
        case FaultKind.BOMB:
            headers = {**answer.headers, "Content-Encoding": "gzip"}
            return replace(answer, body=bomb(answer.body, int(fault.value)), headers=headers)
        case FaultKind.NULL | FaultKind.MISSING | FaultKind.BLANK | FaultKind.WRONG_TYPE:
            return _edited(answer, parse_place(fault.value), _EDITS[fault.kind])
        case _:
            return answer
    return replace(other, uid=answer.uid)


def maintenance() -> Answer:
    """What every REST call is answered with during maintenance."""
    return json_answer({"status": _MAINTENANCE}, _MAINTENANCE)


def too_many(seconds: float) -> Answer:
    """A refusal that says to wait, in the older manual's headers and in HTTP's own."""
    refusal = Refused(
        TOO_MANY_READS,
        "The number of access exceeded limit",
        http_status=HTTPStatus.TOO_MANY_REQUESTS,
    )
    answer = refusal_answer(refusal, 0)
    quota = Quota(READ_LIMIT, remaining=0, reset_ms=math.ceil(seconds * 1000))
    # HTTP's header knows whole seconds only.
    waiting = {**quota.headers(), "Retry-After": str(math.ceil(seconds))}
    return replace(answer, headers={**answer.headers, **waiting})


def error(code: str, path: str, milliseconds: int) -> Answer:
    """The venue's error of that code, in the shape that the path's variant has for it."""
    if code == _MAINTENANCE:
        return maintenance()
    rule = RULE_BY_CODE.get(code)
    message = rule.meaning if rule else "unknown error"
    status = HTTPStatus.OK if code != str(TOO_MANY_READS) else HTTPStatus.TOO_MANY_REQUESTS
    number = int(code) if code.isdecimal() else code
    refusal = Refused(number, message, shape=_shape(code, path), http_status=status)
    return refusal_answer(refusal, milliseconds)


def _shape(code: str, path: str) -> RefusalShape:
    if not code.isdecimal():
        return "hyphen"
    if code == _INCORRECT_KEY:
        return "status"
    if path.startswith("/v5/"):
        return "message" if code in _SIGNATURE_CODES else "msg"
    # The paths of neither variant are the older API's.
    return "message" if path.startswith("/sapi/") else "status"


def _location(base: str, request: Request) -> str:
    query = f"?{request.query}" if request.query else ""
    # A header is ASCII, whatever was asked for.
    return f"{base}{request.path}{query}".encode("ascii", "ignore").decode()


def bomb(body: bytes, mebibytes: int) -> bytes:
    """A gzip text that is about a thousandth of what it unpacks to: blanks, then the body."""
    blanks, checksum = _deflated_blanks(mebibytes)
    deflater = zlib.compressobj(wbits=_RAW_DEFLATE)
    rest = deflater.compress(body) + deflater.flush()
    size = (mebibytes * _MEBIBYTE + len(body)) % 2**32
    return _GZIP_HEAD + blanks + rest + struct.pack("<II", zlib.crc32(body, checksum), size)


@lru_cache(maxsize=8)
def _deflated_blanks(mebibytes: int) -> tuple[bytes, int]:
    """That many MiB of blanks, deflated, to be gone on with; and their CRC-32."""
    blanks = b" " * _MEBIBYTE
    deflater = zlib.compressobj(level=9, wbits=_RAW_DEFLATE)
    # After a full flush nothing refers to what was before, so the same bytes may follow each other.
    block = deflater.compress(blanks) + deflater.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(blanks, checksum)
    return block * mebibytes, checksum


Edit = Callable[[Any, Any], None]
"""Changes what a list or an object holds under an index or a name."""


def _remove(holder: Any, step: Any) -> None:
    del holder[step]


def _put_null(holder: Any, step: Any) -> None:
    holder[step] = None


def _put_blank(holder: Any, step: Any) -> None:
    holder[step] = ""


def _put_wrong_type(holder: Any, step: Any) -> None:
    holder[step] = "unexpected" if isinstance(holder[step], dict | list) else {}


_EDITS: Final[dict[str, Edit]] = {
    FaultKind.NULL: _put_null,
    FaultKind.MISSING: _remove,
    FaultKind.BLANK: _put_blank,
    FaultKind.WRONG_TYPE: _put_wrong_type,
}


def _edited(answer: Answer, place: Place, edit: Edit) -> Answer | None:
    document = json.loads(answer.body)
    *way, last = place
    holder: Any = document
    for step in way:
        if not _has(holder, step):
            return None
        holder = holder[step]
    if not _has(holder, last):
        return None
    edit(holder, last)
    return replace(answer, body=json_text(document))


def _has(holder: object, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(holder, list) and step < len(holder)
    return isinstance(holder, dict) and step in holder
