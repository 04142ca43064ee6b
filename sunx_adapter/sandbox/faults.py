"""What can go wrong on demand: the kinds of faults as a table of data, and their grammar.

A fault is written as::

    KIND[=PARAMETER][@PROBABILITY]

    reset                 every request's connection is reset
    silence@0.05          a twentieth of all requests is never answered
    code=1004@0.1         a tenth is refused with the venue's code 1004
    clock=-7200           the venue's clock is two hours slow

A new kind is a member of :class:`FaultKind`, an entry of :data:`FAULT_RULES` and a branch where it
is played: in ``spoiling`` if it is another answer, in ``wire`` if it goes wrong below HTTP. For
requests that are not REST's, give the rule their paths. No I/O.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sunx_adapter.venue import PATH_VARIANTS

EVERY_PATH: Final = "*"
BALANCE_PATHS: Final = frozenset(variant.balance for variant in PATH_VARIANTS.values())

PUSH_LOGIN: Final = "/push/login"
PUSH_NEWS: Final = "/push/account"
"""Stand for what happens on an open push connection: its login, and each message about an account.
A fault for the path of the push channel itself is played at the handshake."""

Place = tuple[str | int, ...]
"""Where something stands in a JSON text: ``("data", "details", 0, "equity")``."""

_MAX_SECONDS: Final = 24 * 60 * 60
_MAX_CLOCK_SECONDS: Final = 10 * 365 * 24 * 60 * 60
_MAX_MEBIBYTES: Final = 4096

_GRAMMAR: Final = re.compile(
    r"(?P<kind>[^=@]*)(=(?P<parameter>.*?))?(@(?P<probability>[^@]*))?", re.DOTALL
)
_CODE: Final = re.compile(r"[0-9]{1,9}|[a-z][a-z-]{0,63}")
_ADDRESS: Final = re.compile(r"https?://[!-~]+")
_PLACE: Final = re.compile(r"\w+(\.\w+|\[[0-9]{1,6}\])*", re.ASCII)
_PLACE_STEP: Final = re.compile(r"(\w+)|\[([0-9]+)\]", re.ASCII)


class FaultError(ValueError):
    """A fault that cannot be; the text says what there is."""


class FaultKind(StrEnum):
    """The kinds of faults; :data:`FAULT_RULES` tells what each does."""

    OK = "ok"
    REFUSE = "refuse"
    RESET = "reset"
    SILENCE = "silence"
    SLOW = "slow"
    DRIP = "drip"
    CUT = "cut"
    GARBAGE = "garbage"
    HTML = "html"
    STATUS = "status"
    REDIRECT = "redirect"
    MAINTENANCE = "maintenance"
    CLOCK = "clock"
    RATELIMIT = "ratelimit"
    CODE = "code"
    TRUNCATED = "truncated"
    BOMB = "bomb"
    NULL = "null"
    MISSING = "missing"
    BLANK = "blank"
    WRONG_TYPE = "wrong-type"
    PUSH_CODE = "push-code"
    PUSH_RESET = "push-reset"
    PUSH_SILENCE = "push-silence"
    PUSH_GARBAGE = "push-garbage"
    PUSH_ORDER = "push-order"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may stand behind a kind's ``=``.

    Attributes:
        name: for the help, ``"SECONDS"``.
        expected: what it must be, for the error message.
        fits: whether a text is that.
        default: the text that counts where none is given; ``None`` if one has to be given.
    """

    name: str
    expected: str
    fits: Callable[[str], bool]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class FaultRule:
    """What is known of a kind of fault.

    Attributes:
        kind: its name.
        does: what happens, in one sentence without a subject or full stop.
        parameter: what may stand behind ``=``; ``None`` if nothing may.
        accepted_only: it replaces or changes the answer of an accepted request, while a refused
            one (wrong key or signature, too many reads) gets its refusal; other kinds do not ask.
        paths: the requests that it is for, unless :attr:`Fault.path` says otherwise.
    """

    kind: FaultKind
    does: str
    parameter: Parameter | None = None
    accepted_only: bool = False
    paths: frozenset[str] = BALANCE_PATHS

    @property
    def usage(self) -> str:
        """How it is written, ``"html[=STATUS]"``."""
        if self.parameter is None:
            return self.kind.value
        if self.parameter.default is None:
            return f"{self.kind}={self.parameter.name}"
        return f"{self.kind}[={self.parameter.name}]"

    @property
    def sentence(self) -> str:
        """What happens, with the parameter's default."""
        if self.parameter is None or self.parameter.default is None:
            return self.does
        return f"{self.does} (default: {self.parameter.default})"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _between(text: str, low: float, high: float) -> bool:
    return low <= _number(text) <= high


def _whole(text: str, low: int, high: int) -> bool:
    return text.isascii() and text.isdigit() and _between(text, low, high)


def _seconds(default: str) -> Parameter:
    expected = f"a number of seconds from 0 to {_MAX_SECONDS}"
    return Parameter("SECONDS", expected, lambda text: _between(text, 0, _MAX_SECONDS), default)


def _status(default: str | None = None) -> Parameter:
    # Below 200 nothing is an answer yet.
    expected = "an HTTP status from 200 to 599"
    return Parameter("STATUS", expected, lambda text: _whole(text, 200, 599), default)


def _place(default: str) -> Parameter:
    expected = "a place in the answer, like data.details[0].equity"
    return Parameter("PLACE", expected, lambda text: bool(_PLACE.fullmatch(text)), default)


_CLOCK_SECONDS: Final = Parameter(
    "SECONDS",
    f"a number of seconds from -{_MAX_CLOCK_SECONDS} to {_MAX_CLOCK_SECONDS}",
    lambda text: _between(text, -_MAX_CLOCK_SECONDS, _MAX_CLOCK_SECONDS),
    "3600",
)
_MEBIBYTES: Final = Parameter(
    "MIB",
    f"a whole number of MiB from 1 to {_MAX_MEBIBYTES}",
    lambda text: _whole(text, 1, _MAX_MEBIBYTES),
    "64",
)
_ERROR_CODE: Final = Parameter(
    "CODE",
    "an error code other than 200, like 1003 or gateway-internal-error",
    lambda text: bool(_CODE.fullmatch(text)) and text != "200",
)
_ELSEWHERE: Final = Parameter(
    "URL",
    "an address that begins with http:// or https://",
    lambda text: bool(_ADDRESS.fullmatch(text)),
    "https://elsewhere.invalid",
)
_AMOUNT: Final = "data.details[0].equity"
_PUSH_CODE: Final = Parameter(
    "CODE",
    "an error code of the push channel, like 2003",
    lambda text: _whole(text, 1, 99_999),
    "2003",
)
_NEWS: Final = frozenset({PUSH_NEWS})
_EVERYWHERE: Final = frozenset({EVERY_PATH})

_RULES: Final = (
    FaultRule(FaultKind.OK, "answers rightly"),
    FaultRule(
        FaultKind.REFUSE,
        "closes the connection without a byte, and refuses new ones for SECONDS",
        _seconds("0"),
    ),
    FaultRule(FaultKind.RESET, "resets the connection (RST) instead of answering"),
    FaultRule(FaultKind.SILENCE, "never answers, and keeps the connection open"),
    FaultRule(FaultKind.SLOW, "answers rightly, SECONDS late", _seconds("0.5")),
    FaultRule(
        FaultKind.DRIP,
        "sends the answer, head and body, byte by byte, SECONDS apart",
        _seconds("0.05"),
    ),
    FaultRule(FaultKind.CUT, "announces the whole body, sends half of it and closes"),
    FaultRule(FaultKind.GARBAGE, "sends bytes that are no HTTP, and closes"),
    FaultRule(
        FaultKind.HTML, "sends the HTML page of a proxy in front, with HTTP STATUS", _status("502")
    ),
    FaultRule(FaultKind.STATUS, "sends HTTP STATUS without a body", _status()),
    FaultRule(
        FaultKind.REDIRECT,
        "redirects (302) to URL, with the request's path and signed query",
        _ELSEWHERE,
    ),
    FaultRule(
        FaultKind.MAINTENANCE, 'answers {"status":"maintain"}, on every path', paths=_EVERYWHERE
    ),
    FaultRule(
        FaultKind.CLOCK,
        "sets the venue's clock SECONDS ahead: ts, Date and the check of a request's time go by "
        "it, on every path",
        _CLOCK_SECONDS,
        paths=_EVERYWHERE,
    ),
    FaultRule(
        FaultKind.RATELIMIT,
        "refuses with HTTP 429 and code 1032, and headers that say to wait SECONDS",
        _seconds("1"),
        accepted_only=True,
    ),
    FaultRule(
        FaultKind.CODE,
        "refuses with the venue's error CODE, in the shape that it has for that",
        _ERROR_CODE,
        accepted_only=True,
    ),
    FaultRule(FaultKind.TRUNCATED, "sends half of the JSON text, as if that were all of it"),
    FaultRule(
        FaultKind.BOMB, "sends the answer behind MIB mebibytes of blanks, as gzip", _MEBIBYTES
    ),
    FaultRule(FaultKind.NULL, "puts null at PLACE", _place("data"), accepted_only=True),
    FaultRule(FaultKind.MISSING, "leaves out PLACE", _place(_AMOUNT), accepted_only=True),
    FaultRule(FaultKind.BLANK, "puts blank text at PLACE", _place(_AMOUNT), accepted_only=True),
    FaultRule(
        FaultKind.WRONG_TYPE,
        "puts an object at PLACE, or text where an object or a list belongs",
        _place(_AMOUNT),
        accepted_only=True,
    ),
    FaultRule(
        FaultKind.PUSH_CODE,
        "push: refuses the login with the push channel's CODE",
        _PUSH_CODE,
        paths=frozenset({PUSH_LOGIN}),
    ),
    FaultRule(
        FaultKind.PUSH_RESET,
        "push: resets the connection instead of telling of a change",
        paths=_NEWS,
    ),
    FaultRule(
        FaultKind.PUSH_SILENCE,
        "push: tells nothing from a change on, not even heartbeats",
        paths=_NEWS,
    ),
    FaultRule(
        FaultKind.PUSH_GARBAGE, "push: sends garbage instead of telling of a change", paths=_NEWS
    ),
    FaultRule(
        FaultKind.PUSH_ORDER, "push: tells of a change, and then the old state again", paths=_NEWS
    ),
)

FAULT_RULES: Final[dict[str, FaultRule]] = {rule.kind: rule for rule in _RULES}
"""By kind, in the order in which they are listed."""


def fault_kinds() -> tuple[FaultRule, ...]:
    """All kinds, for help texts: see :attr:`FaultRule.usage` and :attr:`FaultRule.sentence`."""
    return tuple(FAULT_RULES.values())


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. As text it is ``KIND[=PARAMETER][@PROBABILITY]``.

    Args:
        kind: a :class:`FaultKind` or its name.
        parameter: what stands behind ``=``, as text or number; it is kept as text.
        probability: the share of requests, 0 to 1. Without one: all that other faults leave,
            which several such faults share evenly.
        path: the one path that it is for, or ``"*"`` for every path; without: the kind's own
            (the balance of both variants; every path for ``clock`` and ``maintenance``).

    Raises:
        FaultError: there is no such kind, or a value cannot be.
    """

    kind: str
    parameter: str | float | None = None
    probability: float | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_RULES:
            raise FaultError(_unknown(self.kind))
        if self.parameter is not None:
            object.__setattr__(self, "parameter", str(self.parameter))
        _check_parameter(self.rule, self.parameter)
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise FaultError(f"{self.kind}: the probability must be a number from 0 to 1")
        if self.path is not None and not (self.path == EVERY_PATH or self.path.startswith("/")):
            raise FaultError(f"{self.kind}: the path must begin with / or be {EVERY_PATH}")

    def __str__(self) -> str:
        parameter = "" if self.parameter is None else f"={self.parameter}"
        probability = "" if self.probability is None else f"@{self.probability}"
        return f"{self.kind}{parameter}{probability}"

    @property
    def rule(self) -> FaultRule:
        """What is known of its kind."""
        return FAULT_RULES[self.kind]

    @property
    def value(self) -> str:
        """The parameter, or the kind's default; empty where there is neither."""
        if self.parameter is not None:
            return str(self.parameter)
        return (self.rule.parameter and self.rule.parameter.default) or ""

    @property
    def paths(self) -> frozenset[str]:
        """The requests that it is for; ``"*"`` among them stands for all."""
        return self.rule.paths if self.path is None else frozenset({self.path})

    def is_for(self, path: str) -> bool:
        """Whether requests of that path can get it."""
        return path in self.paths or EVERY_PATH in self.paths


def parse_fault(text: str) -> Fault:
    """The fault that ``KIND[=PARAMETER][@PROBABILITY]`` means.

    What stands behind the last ``@`` is the probability, so a parameter with an ``@`` in it needs
    one behind: ``redirect=http://user@host@1``.

    Raises:
        FaultError: it means none; the text says why, and what there is.
    """
    parts = _GRAMMAR.fullmatch(text)
    if parts is None or parts["kind"] not in FAULT_RULES:
        raise FaultError(_unknown(text if parts is None else parts["kind"]))
    probability = None if parts["probability"] is None else _number(parts["probability"])
    return Fault(parts["kind"], parts["parameter"], probability)


def as_faults(faults: Iterable[Fault | str]) -> tuple[Fault, ...]:
    """Faults of faults and texts; a single one may stand for itself.

    Raises:
        FaultError: a text means no fault.
    """
    several = [faults] if isinstance(faults, Fault | str) else faults
    return tuple(f if isinstance(f, Fault) else parse_fault(f) for f in several)


def parse_place(text: str) -> Place:
    """The steps to a place: ``data.details[0]`` gives ``("data", "details", 0)``."""
    return tuple(int(index) if index else name for name, index in _PLACE_STEP.findall(text))


def _check_parameter(rule: FaultRule, given: object) -> None:
    parameter = rule.parameter
    if parameter is None:
        if given is not None:
            raise FaultError(f"{rule.kind}={given}: {rule.kind} has no parameter")
    elif given is None:
        if parameter.default is None:
            raise FaultError(f"{rule.usage}: {parameter.name} must be {parameter.expected}")
    elif not parameter.fits(str(given)):
        raise FaultError(f"{rule.kind}={given}: {parameter.name} must be {parameter.expected}")


def _unknown(kind: str) -> str:
    known = ", ".join(rule.usage for rule in fault_kinds())
    name, colon, rest = kind.partition(":")
    hint = f" (is {name}={rest} meant?)" if colon and name in FAULT_RULES else ""
    return f"no fault {kind!r}{hint}; there are: {known}; each may have a share, as reset@0.2"
