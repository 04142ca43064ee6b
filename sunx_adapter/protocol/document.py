"""Exact JSON: every answer is decoded once, and no digit of any number is lost."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import msgspec
from ccxt.base.errors import BadResponse

MAX_REASON: Final = 120
LATEST_TIME: Final = 4_102_444_800_000
"""The year 2100, in ms UTC. A later time is no venue's clock."""

_MAX_DIGITS: Final = 18


class Document(msgspec.Struct, frozen=True, gc=False):
    """One decoded JSON text.

    Attributes:
        wire: the value, numbers with a fraction or exponent as exact ``Decimal``.
        info: the same as any JSON library gives it (such numbers as ``float``), for users.
            The very same object as ``wire`` unless there is such a number.
        body: what it was decoded from; empty if that is not known.
    """

    wire: Any
    info: Any
    body: bytes = b""


class _Decoder(threading.local):
    """Per thread, since the hook notes whether it was called during the decoding under way."""

    def __init__(self) -> None:
        self.saw_fraction = False
        self._decoder = msgspec.json.Decoder(float_hook=self._fraction)

    def _fraction(self, text: str) -> Decimal:
        self.saw_fraction = True
        return Decimal(text)

    def decode(self, body: bytes) -> Document:
        self.saw_fraction = False
        wire = self._decoder.decode(body)
        return Document(wire, _with(wire, Decimal, float) if self.saw_fraction else wire, body)


_decoder = _Decoder()


def _with(value: Any, kind: type, changed: Callable[[Any], Any]) -> Any:
    """A copy in which every value of that kind is changed."""
    if isinstance(value, dict):
        return {key: _with(item, kind, changed) for key, item in value.items()}
    if isinstance(value, list):
        return [_with(item, kind, changed) for item in value]
    return changed(value) if isinstance(value, kind) else value


def document_of(info: Any) -> Document:
    """The document whose ``info`` this is: its floats are the numbers that they are printed as."""
    return Document(_with(info, float, lambda number: Decimal(repr(number))), info)


def decode_json(body: bytes) -> Document:
    """Decode UTF-8 JSON.

    Raises:
        BadResponse: it is no JSON, ends early, is not UTF-8 or is nested too deeply.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"the answer is no readable JSON: {_reason(error)}"
    raise BadResponse(reason)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)[:MAX_REASON]


def whole_number(value: object) -> int | None:
    """The whole number that a wire value stands for: a JSON integer, or digits as text.

    Whatever else is there, a number with an exponent too, is not converted: ``1e1000000`` would
    take a minute to.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value) if len(value) <= _MAX_DIGITS else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def clock(value: object) -> int | None:
    """The time that a venue tells as its own, ms UTC; ``None`` if it is not plausible."""
    number = whole_number(value)
    return number if number is not None and 0 < number < LATEST_TIME else None


def refuse_duplicate_keys(document: Document, keys: int) -> None:
    """Refuse JSON in which an object has one key twice: which value counts would be a guess.

    Every key is followed by a colon, so a text with as many colons as the decoded value has keys
    has no key twice; only otherwise is it read again, slowly. ``keys`` may be too small.

    Raises:
        BadResponse: a key stands twice in one object, and the message names it; or what hides
            keys is nested too deeply.
    """
    body = document.body
    if body.count(b":") > keys:
        try:
            json.loads(body, object_pairs_hook=_refuse_duplicates, parse_float=str, parse_int=str)
        except RecursionError:
            raise BadResponse("the answer is nested too deeply") from None


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise BadResponse(f"the key {twice!r} stands twice in one object")
