"""From an HTTP answer to its JSON object, or to an exception if it is not a success.

Both venues use the same envelope. The venues' pages and open-source clients show these forms of
errors: ``{"code":1003,"message":…}``, ``{"code":"4007","msg":…}``,
``{"status":"error","err_code":403,"err_msg":…}``, the same with ``err-code`` and ``err-msg``, and
``{"status":"maintain"}``. The HTTP status of an error is often 200.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
from ccxt.base.errors import BadResponse, BaseError, ExchangeError, InvalidNonce

from sunx_adapter.protocol.document import Document, clock, decode_json
from sunx_adapter.protocol.errors import RULE_BY_CODE, TransientError
from sunx_adapter.text import shortened

SUCCESS_CODE: Final = "200"
_SUCCESS_NUMBER: Final = int(SUCCESS_CODE)
MAX_EXCERPT: Final = 4096

_REDIRECTS: Final = range(300, 400)
_FAILURES: Final = range(400, 1000)
_TEMPORARY: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_MAX_WAIT_DIGITS: Final = 8

_CODE_KEYS: Final = ("err-code", "err_code")
_SUCCESS_KEYS: Final = ("success", "ok")
_ERROR_KEYS: Final = ("error", "errors")
_RARE_KEYS: Final = frozenset((*_CODE_KEYS, *_SUCCESS_KEYS, *_ERROR_KEYS, "status"))
_MESSAGE_KEYS: Final = ("message", "msg", "err_msg", "err-msg", *_ERROR_KEYS)


class HttpAnswer(msgspec.Struct, frozen=True, gc=False):
    """A complete HTTP answer.

    Attributes:
        status: the HTTP status code.
        headers: the headers, with names in lower case.
        body: the decompressed body.
        defect: why the body could not be read (too large, damaged compression), else ``None``.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    defect: str | None = None


def read_envelope(answer: HttpAnswer, http_exceptions: Mapping[str, type[BaseError]]) -> Document:
    """The decoded answer, if it is a success.

    Args:
        answer: the HTTP answer.
        http_exceptions: ccxt's ``Exchange.httpExceptions``, by HTTP status.

    Raises:
        BaseError: the exception for the code in
            :data:`~sunx_adapter.protocol.errors.ERROR_RULES`; without readable JSON or with an
            unknown code, ccxt's exception for the HTTP status.
        BadResponse: HTTP 200 without readable JSON or without a code; a redirect.
        TransientError: one of these exceptions, if the next try may succeed.
    """
    status = answer.status
    if status in _REDIRECTS:
        raise BadResponse(redirect_text(status, answer.headers.get("location", "")))
    failed = status in _FAILURES
    try:
        if answer.defect is not None:
            raise BadResponse(answer.defect)
        document = decode_json(answer.body)
        code, message = outcome(document.exact)
    except (BadResponse, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        code, message = "", "the answer is nested too deeply" if nested else str(error)
        if not failed:
            begins = f"; it begins: {_excerpt(answer)}" if answer.body else ""
            raise BadResponse(message + begins) from None
    if code == SUCCESS_CODE and not failed:
        return document
    rule = RULE_BY_CODE.get(code)
    if rule is not None:
        said = f"{code} {message}".rstrip()
        refusal = rule.exception(f"{said} ({rule.meaning}: {rule.advice})")
        if rule.exception is InvalidNonce:
            time = venue_time(answer)
            raise refusal if time is None else TransientError(refusal, venue_time=time)
        transient = rule.transient
    elif failed:
        kind = http_exceptions.get(str(status), ExchangeError)
        said = f"{code} {message}".rstrip() if code else _excerpt(answer)
        refusal = kind(f"HTTP {status}: {said}")
        transient = is_temporary(status)
    else:
        raise ExchangeError(f"{code} {message}".rstrip())
    if transient:
        raise TransientError(refusal, retry_after=retry_after(answer.headers))
    raise refusal


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the venue or a proxy asks to wait; ``None`` if it does not ask."""
    for name, per_second in (("ratelimit-reset", 1000), ("retry-after", 1)):
        value = headers.get(name, "")
        if value.isascii() and value.isdigit() and len(value) < _MAX_WAIT_DIGITS:
            return int(value) / per_second
    return None


def venue_time(answer: HttpAnswer) -> int | None:
    """The venue's time in an answer, ms UTC: ``ts`` of any JSON, else the header ``Date``."""
    try:
        content = decode_json(answer.body).exact
    except BadResponse:
        content = None
    time = clock(content.get("ts")) if isinstance(content, dict) else None
    if time is not None:
        return time
    try:
        date = parsedate_to_datetime(answer.headers.get("date", ""))
        return clock(int(date.timestamp() * 1000))
    except (ValueError, OverflowError):
        return None


def outcome(content: Any) -> tuple[str, str]:
    """Code and message of an answer; the code is ``"200"`` only if no field shows a failure.

    Raises:
        BadResponse: the answer is not a JSON object, or has neither code nor status.
    """
    if not isinstance(content, dict):
        raise BadResponse(f"the answer is not a JSON object but {type(content).__name__}")
    code, status = content.get("code"), content.get("status")
    if code == _SUCCESS_NUMBER and _RARE_KEYS.isdisjoint(content):
        return SUCCESS_CODE, ""  # the usual case first
    failures = [content[key] for key in _CODE_KEYS if content.get(key) not in (None, 0, "0")]
    failures += [code] if code is not None and str(code) != SUCCESS_CODE else []
    failures += [status] if status not in (None, "ok") else []
    failures += [f"{key}: {content[key]}" for key in _SUCCESS_KEYS if _denied(content.get(key))]
    failures += ["error" for key in _ERROR_KEYS if content.get(key)]
    if failures:
        message = next((content[key] for key in _MESSAGE_KEYS if content.get(key)), "")
        return shortened(str(failures[0]), MAX_EXCERPT), shortened(str(message), MAX_EXCERPT)
    if code is None and status is None:
        raise BadResponse("the answer has neither code nor status")
    return SUCCESS_CODE, ""


def _denied(success: object) -> bool:
    return success is not None and str(success).lower() not in ("true", "1")


def is_temporary(status: int) -> bool:
    """Whether another try may succeed after this HTTP status."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TEMPORARY


def redirect_text(status: int, location: str) -> str:
    """The message for a redirect, without the query, which may repeat the key and signature."""
    where = location.partition("?")[0].partition("#")[0] or "nowhere"
    return (
        f"HTTP {status} redirects to {where}; redirects are never followed: check urls and hostname"
    )


def _excerpt(answer: HttpAnswer) -> str:
    # Longer than the shown text: masking makes the keys in it shorter.
    text = shortened(answer.body.decode("utf-8", "replace"), MAX_EXCERPT)
    return " ".join(text.split()) or "no body"
