"""All kinds of faults: each is one entry of :data:`FAULT_RULES`. No I/O."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from http import HTTPStatus
from operator import getitem
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from sunx_adapter.sandbox.answers import HttpRequest, Refused, SandboxAnswer, json_answer, page
from sunx_adapter.sandbox.delivery import Delivery, in_pieces, whole
from sunx_adapter.venue import PATH_VARIANTS

EVERY_PATH: Final = "*"
BALANCE_PATHS: Final = frozenset(variant.balance for variant in PATH_VARIANTS.values())

PUSH_LOGIN: Final = "/push/login"
PUSH_ACCOUNT: Final = "/push/account"
"""Pseudo-paths for faults on an open push connection: at its login, and at each account message.
A fault for the real path of the push channel happens at the handshake."""

_GARBAGE: Final = bytes(range(256)) * 4
_MAINTENANCE: Final = json_answer({"status": "maintain"}, "maintain")

_MEBIBYTE: Final = f"{0x0AD1348F:032b}".replace("0", " ").replace("1", "\t").rjust(2**20).encode()
"""A mebibyte of blanks, some of them tabs so that its CRC-32 is 0. Any number of them before a text
leaves the checksum of the text unchanged."""
_GZIP_HEAD: Final = 10  # bytes of a gzip header without a file name (RFC 1952)


class FaultError(ValueError):
    """A fault is invalid; the message says why, or lists the valid ones."""


class Parameter(NamedTuple):
    """The parameter of a kind of fault: its name in the help, its valid values, and its type."""

    name: str
    expected: str
    type: Any


def _within(name: str, what: str, number: type, low: int, high: int) -> Parameter:
    return Parameter(name, f"{what} from {low} to {high}", Annotated[number, Meta(ge=low, le=high)])


def _matching(name: str, expected: str, pattern: str) -> Parameter:
    return Parameter(name, expected, Annotated[str, Meta(pattern=rf"^({pattern})\Z")])


_DAY: Final = 24 * 60 * 60
_SECONDS: Final = _within("SECONDS", "a number of seconds", float, 0, _DAY)
_AHEAD: Final = _within("SECONDS", "a number of seconds", float, -3650 * _DAY, 3650 * _DAY)
# A status below 200 is not a final answer.
_STATUS: Final = _within("STATUS", "an HTTP status", int, 200, 599)
_MEBIBYTES: Final = _within("MIB", "a whole number of MiB", int, 1, 4096)
_PUSH_CODE: Final = _within("CODE", "an error code of the push channel", int, 1, 99_999)
_CODE: Final = _matching(
    "CODE",
    "an error code other than 200, like 1003 or gateway-internal-error",
    r"(?!200\Z)[0-9]{1,9}|[a-z][a-z-]{0,63}",
)
_URL: Final = _matching("URL", "a URL that begins with http:// or https://", "https?://[!-~]+")
_FIELD: Final = _matching(
    "FIELD",
    "a field of the answer, like data.details[0].equity",
    r"(?a:\w+(\.\w+|\[[0-9]{1,6}\])*)",
)
_FIELD_STEP: Final = re.compile(r"\[([0-9]+)\]|(\w+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A kind of fault.

    Attributes:
        kind: its name.
        effect: what happens: one sentence without subject and full stop.
        parameter: its parameter, if it has one.
        default: the parameter's default value; ``None`` if the parameter is required.
        accepted_only: whether it applies to accepted requests only; refused ones (wrong key or
            signature, too many reads) then get their normal refusal.
        paths: the paths of the requests that it applies to, unless :attr:`Fault.path` is set.
        answer: makes the answer from the request, its normal answer and the parameter's value;
            returns ``None`` if the fault cannot be applied to that answer.
        instead: sent in place of any answer or push message.
        delivery: makes the delivery of an answer from its head, its body and the parameter's value;
            or of a push message from the previous message (or nothing), the message and the value.
        login: makes the refusal of a push login from the parameter's value.
    """

    kind: str
    effect: str
    parameter: Parameter | None = None
    default: str | None = None
    accepted_only: bool = False
    paths: frozenset[str] = BALANCE_PATHS
    answer: Callable[..., SandboxAnswer | None] = lambda _request, normal, _value: normal
    instead: Delivery | None = None
    delivery: Callable[[bytes, bytes, Any], Delivery] = lambda head, body, _: whole(head + body)
    login: Callable[[Any], Refused] | None = None

    @property
    def usage(self) -> str:
        """Its syntax, ``"html[=STATUS]"``."""
        parameter = f"={self.parameter.name}" if self.parameter else ""
        return f"{self.kind}{parameter if self.default is None else f'[{parameter}]'}"

    @property
    def help(self) -> str:
        """The effect and the parameter's default."""
        return self.effect + ("" if self.default is None else f" (default: {self.default})")

    def value(self, text: object) -> Any:
        """The value of a parameter, or of the default.

        Raises:
            FaultError: it is missing, invalid, or of a kind without a parameter.
        """
        given = self.usage if text is None else f"{self.kind}={text}"
        if self.parameter is None:
            if text is not None:
                raise FaultError(f"{given}: {self.kind} has no parameter")
            return None
        name, expected, type_ = self.parameter
        try:
            return msgspec.convert(self.default if text is None else text, type_, strict=False)
        except msgspec.ValidationError:
            raise FaultError(f"{given}: {name} must be {expected}") from None


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _redirect(request: HttpRequest, _normal: SandboxAnswer, url: str) -> SandboxAnswer:
    location = f"{url}{request.path}{'?' if request.query else ''}{request.query}"
    # A header must be ASCII; the requested path may not be.
    return page(HTTPStatus.FOUND, {"Location": location.encode("ascii", "ignore").decode()})


def _too_many(request: HttpRequest, normal: SandboxAnswer, seconds: float) -> SandboxAnswer:
    """Has the older manual's headers, and ``Retry-After``, which is in whole seconds."""
    milliseconds = str(math.ceil(seconds * 1000))
    wait = {"ratelimit-reset": milliseconds, "Retry-After": str(math.ceil(seconds))}
    headers = {**normal.headers, "ratelimit-remaining": "0", **wait}
    return replace(Refused.too_many_reads().answer(request), headers=headers)


def _error_code(request: HttpRequest, _normal: SandboxAnswer, code: str) -> SandboxAnswer:
    from sunx_adapter.protocol.errors import RULE_BY_CODE  # noqa: PLC0415 - ccxt is slow to load

    if code == "maintain":
        return _MAINTENANCE
    meaning = RULE_BY_CODE[code].meaning if code in RULE_BY_CODE else "unknown error"
    return Refused(int(code) if code.isdecimal() else code, meaning).answer(request)


def _bomb(_request: HttpRequest, normal: SandboxAnswer, mebibytes: int) -> SandboxAnswer:
    """The body after many blanks, compressed by gzip to about a thousandth of its size."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = deflater.compress(_MEBIBYTE) + deflater.flush(zlib.Z_FULL_FLUSH)
    packed = gzip.compress(normal.body, mtime=0)
    size = struct.pack("<L", (mebibytes * len(_MEBIBYTE) + len(normal.body)) % 2**32)
    body = packed[:_GZIP_HEAD] + block * mebibytes + packed[_GZIP_HEAD : -len(size)] + size
    return replace(normal, body=body, headers={**normal.headers, "Content-Encoding": "gzip"})


def _field_fault(kind: str, effect: str, edit: Callable[[Any], object], field: str) -> FaultRule:
    """A fault that edits one field of an accepted answer; ``edit`` gives its new value."""

    def answer(_: HttpRequest, normal: SandboxAnswer, field: str) -> SandboxAnswer | None:
        document = msgspec.json.decode(normal.body)
        *steps, last = [int(index) if index else name for index, name in _FIELD_STEP.findall(field)]
        try:
            parent = reduce(getitem, steps, document)
            parent[last] = edit(parent[last])
            if parent[last] is msgspec.UNSET:
                del parent[last]
        except (LookupError, TypeError):
            return None  # there is no such field
        return replace(normal, body=msgspec.json.encode(document))

    return FaultRule(kind, effect, _FIELD, field, accepted_only=True, answer=answer)


_EVERYWHERE: Final = frozenset({EVERY_PATH})
_LOGIN: Final = frozenset({PUSH_LOGIN})
_PUSH: Final = frozenset({PUSH_ACCOUNT})
_RESET: Final = Delivery(end="reset")
_STALL: Final = Delivery(end="stall")
_EQUITY: Final = "data.details[0].equity"

# Of each entry, the first line says what happens, the second one how.
# fmt: off
_RULES: Final = (
    FaultRule("ok", "answers normally"),
    FaultRule("refuse", "closes the connection without sending a byte", instead=Delivery()),
    FaultRule("reset", "resets the connection (RST) instead of answering", instead=_RESET),
    FaultRule("silence", "never answers and keeps the connection open", instead=_STALL),
    FaultRule("slow", "answers normally after SECONDS", _SECONDS, "0.5",
              delivery=lambda head, body, seconds: Delivery([b"", head + body], seconds, "keep")),
    FaultRule("drip", "sends the answer's head and body byte by byte, SECONDS apart",
              _SECONDS, "0.05",
              delivery=lambda head, body, seconds: Delivery(in_pieces(head + body, 1), seconds)),
    FaultRule("cut", "announces the whole body, sends half of it and closes",
              delivery=lambda head, body, _value: Delivery([head, _half(body)])),
    FaultRule("garbage", "sends bytes that are not HTTP, and closes", instead=Delivery([_GARBAGE])),
    FaultRule("html", "sends a proxy's HTML page with HTTP STATUS", _STATUS, "502",
              answer=lambda _request, _normal, status: page(status)),
    FaultRule("status", "sends HTTP STATUS without a body", _STATUS,
              answer=lambda _request, _normal, status: SandboxAnswer(status, status)),
    FaultRule("redirect", "redirects (302) to URL plus the request's path and signed query",
              _URL, "https://elsewhere.invalid", answer=_redirect),
    FaultRule("maintenance", 'answers {"status":"maintain"} on every path', paths=_EVERYWHERE,
              answer=lambda _request, _normal, _value: _MAINTENANCE,
              login=lambda _value: Refused(1006, "System is in maintenance")),
    # FaultPlan applies it, because it can accompany any other fault.
    FaultRule("clock", "sets the venue's clock SECONDS ahead on every path: for ts, Date and the "
              "check of a request's time", _AHEAD, "3600", paths=_EVERYWHERE),
    FaultRule("ratelimit", "refuses with HTTP 429, code 1032 and headers that ask to wait SECONDS",
              _SECONDS, "1", accepted_only=True, answer=_too_many),
    FaultRule("code", "refuses with the venue's error CODE, in the venue's format for it",
              _CODE, accepted_only=True, answer=_error_code),
    FaultRule("truncated", "sends half of the JSON as a complete HTTP answer",
              answer=lambda _request, normal, _value: replace(normal, body=_half(normal.body))),
    FaultRule("bomb", "sends MIB mebibytes of blanks before the JSON, as gzip",
              _MEBIBYTES, "64", answer=_bomb),
    _field_fault("null", "sets FIELD to null", lambda _: None, "data"),
    _field_fault("missing", "leaves out FIELD", lambda _: msgspec.UNSET, _EQUITY),
    _field_fault("blank", "sets FIELD to empty text", lambda _: "", _EQUITY),
    _field_fault("wrong-type",
                 "changes FIELD to an object, or to text if it is an object or a list",
                 lambda value: "unexpected" if isinstance(value, dict | list) else {}, _EQUITY),
    FaultRule("push-code", "push: refuses the login with CODE", _PUSH_CODE, "2003", paths=_LOGIN,
              login=lambda code: Refused(code, "refused on purpose")),
    FaultRule("push-reset", "push: resets the connection instead of sending a change",
              paths=_PUSH, instead=_RESET),
    FaultRule("push-silence", "push: stops sending at a change, heartbeats included",
              paths=_PUSH, instead=_STALL),
    FaultRule("push-garbage", "push: sends garbage instead of a change",
              paths=_PUSH, instead=whole(_GARBAGE)),
    FaultRule("push-order", "push: sends a change, then the previous state again", paths=_PUSH,
              delivery=lambda old, new, _: Delivery(filter(None, (new, old)), end="keep")),
)
# fmt: on

FAULT_RULES: Final[dict[str, FaultRule]] = {rule.kind: rule for rule in _RULES}
"""By kind, in the order of the help."""
