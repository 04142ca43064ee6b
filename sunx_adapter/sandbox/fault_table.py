"""Everything that can go wrong on demand: each kind of fault is one entry of :data:`FAULT_RULES`.

An entry says how the fault is written, what it does and how it is played: as another answer, as
bytes that go out otherwise, as another push message or as a refused login. No I/O.
"""

import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

import msgspec

from sunx_adapter.sandbox.answers import (
    HttpAnswer,
    HttpRequest,
    RefusalShape,
    Refused,
    json_answer,
    page,
    refusal_answer,
    too_many_reads,
)
from sunx_adapter.sandbox.delivery import Delivery, in_pieces
from sunx_adapter.venue import PATH_VARIANTS

EVERY_PATH: Final = "*"
BALANCE_PATHS: Final = frozenset(variant.balance for variant in PATH_VARIANTS.values())

PUSH_LOGIN: Final = "/push/login"
PUSH_NEWS: Final = "/push/account"
"""Stand for what happens on an open push connection: its login, and each message about an account.
A fault for the path of the push channel itself is played at the handshake."""

_MAX_SECONDS: Final = 24 * 60 * 60
_MAX_CLOCK_SECONDS: Final = 10 * 365 * 24 * 60 * 60
_MAX_MEBIBYTES: Final = 4096
_MEBIBYTE: Final = 1024 * 1024
_GARBAGE: Final = bytes(range(256)) * 4
_SIGNATURE_CODES: Final = frozenset({"1003", *map(str, range(12001, 12009))})
"""What the check of a signed request ends with; v5 sends it in another shape than other errors."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may follow a kind's ``=``.

    Attributes:
        name: for the help, ``"SECONDS"``.
        expected: what it must be, for the error message.
        fits: whether a text is that.
        default: the text that counts where none is given; ``None`` if one has to be given.
    """

    name: str
    expected: str
    fits: Callable[[str], object]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A kind of fault.

    Attributes:
        kind: its name.
        does: what happens, in one sentence without a subject or full stop.
        parameter: what may follow ``=``; ``None`` if nothing may.
        accepted_only: it replaces or changes the answer of an accepted request, while a refused
            one (wrong key or signature, too many reads) gets its refusal; other kinds do not ask.
        paths: the requests that it is for, unless :attr:`Fault.path` says otherwise.
        answer: gives the answer from the request, its right answer and the parameter; ``None`` if
            this answer cannot get the fault.
        instead: what goes out instead of an answer or a push message, whatever that is.
        delivery: gives how the answer goes out, from its head, its body and the parameter.
        login: gives the refusal of a login to the push channel, from the parameter.
        push: gives what goes out for a push message, from that and the one before it, if any.
    """

    kind: str
    does: str
    parameter: Parameter | None = None
    accepted_only: bool = False
    paths: frozenset[str] = BALANCE_PATHS
    answer: Callable[[HttpRequest, HttpAnswer, str], HttpAnswer | None] | None = None
    instead: Delivery | None = None
    delivery: Callable[[bytes, bytes, str], Delivery] | None = None
    login: Callable[[str], Refused] | None = None
    push: Callable[[bytes, bytes | None], Delivery] | None = None

    @property
    def usage(self) -> str:
        """How it is written, ``"html[=STATUS]"``."""
        if self.parameter is None:
            return self.kind
        equals = f"={self.parameter.name}"
        return f"{self.kind}{equals if self.parameter.default is None else f'[{equals}]'}"

    @property
    def sentence(self) -> str:
        """What happens, with the parameter's default."""
        if self.parameter is None or self.parameter.default is None:
            return self.does
        return f"{self.does} (default: {self.parameter.default})"


# -- parameters -----------------------------------------------------------------------------


def number(text: str) -> float:
    """The number that a text is; NaN, which is neither above nor below anything, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(low: int, high: int) -> Callable[[str], bool]:
    return lambda text: text.isascii() and text.isdigit() and low <= number(text) <= high


def _seconds(default: str, low: int = 0, high: int = _MAX_SECONDS) -> Parameter:
    expected = f"a number of seconds from {low} to {high}"
    return Parameter("SECONDS", expected, lambda text: low <= number(text) <= high, default)


# Below 200 nothing is an answer yet.
_STATUS: Final = Parameter("STATUS", "an HTTP status from 200 to 599", _whole(200, 599))
_CODE: Final = Parameter(
    "CODE",
    "an error code other than 200, like 1003 or gateway-internal-error",
    re.compile(r"(?!200$)[0-9]{1,9}|[a-z][a-z-]{0,63}").fullmatch,
)
_PUSH_CODE: Final = Parameter(
    "CODE", "an error code of the push channel, like 2003", _whole(1, 99_999), "2003"
)
_URL: Final = Parameter(
    "URL",
    "an address that begins with http:// or https://",
    re.compile(r"https?://[!-~]+").fullmatch,
    "https://elsewhere.invalid",
)
_MEBIBYTES: Final = Parameter(
    "MIB", f"a whole number of MiB from 1 to {_MAX_MEBIBYTES}", _whole(1, _MAX_MEBIBYTES), "64"
)
_PLACE: Final = Parameter(
    "PLACE",
    "a place in the answer, like data.details[0].equity",
    re.compile(r"\w+(\.\w+|\[[0-9]{1,6}\])*", re.ASCII).fullmatch,
)
_PLACE_STEP: Final = re.compile(r"\[([0-9]+)\]|(\w+)", re.ASCII)


# -- other answers --------------------------------------------------------------------------


def _redirect(request: HttpRequest, _right: HttpAnswer, url: str) -> HttpAnswer:
    location = f"{url}{request.path}{'?' if request.query else ''}{request.query}"
    # A header is ASCII, whatever was asked for.
    return page(HTTPStatus.FOUND, {"Location": location.encode("ascii", "ignore").decode()})


def _maintenance(_request: HttpRequest, _right: HttpAnswer, _value: str) -> HttpAnswer:
    return json_answer({"status": "maintain"}, "maintain")


def _too_many(request: HttpRequest, right: HttpAnswer, seconds: str) -> HttpAnswer:
    """Says to wait, in the older manual's headers and in HTTP's own, which has whole seconds."""
    headers = {
        **right.headers,
        "ratelimit-remaining": "0",
        "ratelimit-reset": str(math.ceil(float(seconds) * 1000)),
        "Retry-After": str(math.ceil(float(seconds))),
    }
    return replace(refusal_answer(too_many_reads(), request), headers=headers)


def _error_code(request: HttpRequest, right: HttpAnswer, code: str) -> HttpAnswer:
    """The venue's error of that code, in the shape that the path's variant has for it."""
    from sunx_adapter.protocol.errors import RULE_BY_CODE  # noqa: PLC0415 - ccxt is slow to load

    if code == "maintain":
        return _maintenance(request, right, code)
    rule = RULE_BY_CODE.get(code)
    path = request.path
    shape: RefusalShape
    if not code.isdecimal():
        shape = "hyphen"
    elif path.startswith("/v5/") and code != "403":
        shape = "message" if code in _SIGNATURE_CODES else "msg"
    else:
        # The paths of neither variant are the older API's.
        shape = "message" if path.startswith("/sapi/") and code != "403" else "status"
    refusal = Refused(
        int(code) if code.isdecimal() else code, rule.meaning if rule else "unknown error", shape
    )
    return refusal_answer(refusal, request)


def _truncated(_request: HttpRequest, right: HttpAnswer, _value: str) -> HttpAnswer:
    return replace(right, body=right.body[: len(right.body) // 2])


def _bomb(_request: HttpRequest, right: HttpAnswer, mebibytes: str) -> HttpAnswer:
    """The body behind blanks, as a gzip text that is about a thousandth of what it unpacks to."""
    count = int(mebibytes)
    blanks = b" " * _MEBIBYTE
    deflater = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
    # After a full flush nothing refers to what was before, so the same bytes may follow each other.
    block = deflater.compress(blanks) + deflater.flush(zlib.Z_FULL_FLUSH)
    rest = deflater.compress(right.body) + deflater.flush()
    checksum = 0
    for _ in range(count):
        checksum = zlib.crc32(blanks, checksum)
    size = (count * _MEBIBYTE + len(right.body)) % 2**32
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    tail = struct.pack("<II", zlib.crc32(right.body, checksum), size)
    headers = {**right.headers, "Content-Encoding": "gzip"}
    return replace(right, body=head + block * count + rest + tail, headers=headers)


def _at_place(
    kind: str, does: str, edit: Callable[[Any], object], default: str = "data.details[0].equity"
) -> FaultRule:
    """A fault of one place in an accepted answer; ``edit`` gives what stands there instead."""

    def answer(_: HttpRequest, right: HttpAnswer, place: str) -> HttpAnswer | None:
        holder: Any = [msgspec.json.decode(right.body)]
        document, last = holder, 0
        for index, name in _PLACE_STEP.findall(place):
            holder, last = holder[last], int(index) if index else name
            steps = dict(enumerate(holder)) if isinstance(holder, list) and index else holder
            if not isinstance(steps, dict) or last not in steps:
                return None
        spoiled = edit(holder[last])
        if spoiled is msgspec.UNSET:
            del holder[last]
        else:
            holder[last] = spoiled
        return replace(right, body=msgspec.json.encode(document[0]))

    return FaultRule(
        kind, does, replace(_PLACE, default=default), accepted_only=True, answer=answer
    )


# -- the table ------------------------------------------------------------------------------

_EVERYWHERE: Final = frozenset({EVERY_PATH})
_NEWS: Final = frozenset({PUSH_NEWS})

_RULES: Final = (
    FaultRule("ok", "answers rightly"),
    FaultRule("refuse", "closes the connection without a byte", instead=Delivery()),
    FaultRule(
        "reset", "resets the connection (RST) instead of answering", instead=Delivery(end="reset")
    ),
    FaultRule(
        "silence", "never answers, and keeps the connection open", instead=Delivery(end="stall")
    ),
    FaultRule(
        "slow",
        "answers rightly, SECONDS late",
        _seconds("0.5"),
        delivery=lambda head, body, seconds: Delivery(
            [head, body], end="keep", delay=float(seconds)
        ),
    ),
    FaultRule(
        "drip",
        "sends the answer, head and body, byte by byte, SECONDS apart",
        _seconds("0.05"),
        delivery=lambda head, body, seconds: Delivery(in_pieces(head + body, 1), float(seconds)),
    ),
    FaultRule(
        "cut",
        "announces the whole body, sends half of it and closes",
        delivery=lambda head, body, _: Delivery([head, body[: len(body) // 2]]),
    ),
    FaultRule("garbage", "sends bytes that are no HTTP, and closes", instead=Delivery([_GARBAGE])),
    FaultRule(
        "html",
        "sends the HTML page of a proxy in front, with HTTP STATUS",
        replace(_STATUS, default="502"),
        answer=lambda _request, _right, status: page(int(status)),
    ),
    FaultRule(
        "status",
        "sends HTTP STATUS without a body",
        _STATUS,
        answer=lambda _request, _right, status: HttpAnswer(int(status), b"", int(status)),
    ),
    FaultRule(
        "redirect",
        "redirects (302) to URL, with the request's path and signed query",
        _URL,
        answer=_redirect,
    ),
    FaultRule(
        "maintenance",
        'answers {"status":"maintain"}, on every path',
        paths=_EVERYWHERE,
        answer=_maintenance,
        login=lambda _: Refused(1006, "System is in maintenance"),
    ),
    # Played by the fault plan: it goes with any other fault.
    FaultRule(
        "clock",
        "sets the venue's clock SECONDS ahead: ts, Date and the check of a request's time go by "
        "it, on every path",
        _seconds("3600", -_MAX_CLOCK_SECONDS, _MAX_CLOCK_SECONDS),
        paths=_EVERYWHERE,
    ),
    FaultRule(
        "ratelimit",
        "refuses with HTTP 429 and code 1032, and headers that say to wait SECONDS",
        _seconds("1"),
        accepted_only=True,
        answer=_too_many,
    ),
    FaultRule(
        "code",
        "refuses with the venue's error CODE, in the shape that it has for that",
        _CODE,
        accepted_only=True,
        answer=_error_code,
    ),
    FaultRule(
        "truncated", "sends half of the JSON text, as if that were all of it", answer=_truncated
    ),
    FaultRule(
        "bomb", "sends the answer behind MIB mebibytes of blanks, as gzip", _MEBIBYTES, answer=_bomb
    ),
    _at_place("null", "puts null at PLACE", lambda _: None, default="data"),
    _at_place("missing", "leaves out PLACE", lambda _: msgspec.UNSET),
    _at_place("blank", "puts blank text at PLACE", lambda _: ""),
    _at_place(
        "wrong-type",
        "puts an object at PLACE, or text where an object or a list belongs",
        lambda value: "unexpected" if isinstance(value, dict | list) else {},
    ),
    FaultRule(
        "push-code",
        "push: refuses the login with the push channel's CODE",
        _PUSH_CODE,
        paths=frozenset({PUSH_LOGIN}),
        login=lambda code: Refused(int(code), "refused on purpose"),
    ),
    FaultRule(
        "push-reset",
        "push: resets the connection instead of sending a change",
        paths=_NEWS,
        instead=Delivery(end="reset"),
    ),
    FaultRule(
        "push-silence",
        "push: sends nothing from a change on, not even heartbeats",
        paths=_NEWS,
        instead=Delivery(end="stall"),
    ),
    FaultRule(
        "push-garbage",
        "push: sends garbage instead of a change",
        paths=_NEWS,
        instead=Delivery([_GARBAGE], end="keep"),
    ),
    FaultRule(
        "push-order",
        "push: sends a change, and then the old state again",
        paths=_NEWS,
        push=lambda message, before: Delivery(
            [message] if before is None else [message, before], end="keep"
        ),
    ),
)

FAULT_RULES: Final[dict[str, FaultRule]] = {rule.kind: rule for rule in _RULES}
"""By kind, in the order in which they are listed."""
