"""Exact JSON: every answer is decoded once, and no number loses a digit."""

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import msgspec
from ccxt.base.errors import BadResponse

from sunx_adapter.text import shortened

MAX_REASON: Final = 120
LATEST_TIME: Final = 4_102_444_800_000
"""The year 2100, in ms UTC. No venue's clock shows a later time."""

_MAX_DIGITS: Final = 18


class Document(msgspec.Struct, frozen=True, gc=False):
    """One decoded JSON text.

    Attributes:
        exact: the value; numbers with a fraction or an exponent are exact ``Decimal``s.
        info: the value for users, as any JSON library decodes it: those numbers are ``float``s.
            Without such numbers, the same object as ``exact``.
        body: the JSON text; empty if unknown.
    """

    exact: Any
    info: Any
    body: bytes = b""


class _Decoder:
    """A JSON decoder that notices numbers with a fraction or an exponent. Threads may share it."""

    def __init__(self) -> None:
        self._latest = Decimal()
        self._decode = msgspec.json.Decoder(float_hook=self._exact).decode

    def _exact(self, text: str) -> Decimal:
        self._latest = number = Decimal(text)
        return number

    def document(self, body: bytes) -> Document:
        # Each such number is a new object. So if the text has one, self._latest has changed, even
        # if other threads decode meanwhile.
        before = self._latest
        value = self._decode(body)
        info = value if self._latest is before else _converted(value, Decimal, float)
        return Document(value, info, body)


_decoder = _Decoder()


def _converted(value: Any, kind: type, changed: Callable[[Any], Any]) -> Any:
    """A copy in which every value of this kind is converted."""
    if isinstance(value, dict):
        return {key: _converted(item, kind, changed) for key, item in value.items()}
    if isinstance(value, list):
        return [_converted(item, kind, changed) for item in value]
    return changed(value) if isinstance(value, kind) else value


def document_of(info: Any) -> Document:
    """The document for an ``info``; each float becomes the decimal number in its repr."""
    return Document(_converted(info, float, lambda number: Decimal(repr(number))), info)


def decode_json(body: bytes) -> Document:
    """Decode UTF-8 JSON.

    Raises:
        BadResponse: the body is not JSON, ends early, is not UTF-8 or is nested too deeply.
    """
    try:
        return _decoder.document(body)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"the answer is not readable JSON: {_reason(error)}"
    raise BadResponse(reason)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return shortened(str(error), MAX_REASON)


def whole_number(value: object) -> int | None:
    """The whole number in a decoded value: a JSON integer, or digits as text; else ``None``.

    A number with an exponent is not converted: ``int(Decimal("1e1000000"))`` takes a minute.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value) if len(value) <= _MAX_DIGITS else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def clock(value: object) -> int | None:
    """A venue's time in ms UTC; ``None`` if the value is not a plausible time."""
    number = whole_number(value)
    return number if number is not None and 0 < number < LATEST_TIME else None


def refuse_duplicate_keys(document: Document, keys: int) -> None:
    """Refuse an object with a duplicate key: choosing one of its values would be a guess.

    In JSON, a colon follows every key. So if the text does not have more colons than the decoded
    value has keys, no key is duplicate. Otherwise the text is decoded again, slowly.

    Args:
        document: the decoded JSON.
        keys: how many keys it has, or fewer.

    Raises:
        BadResponse: there is a duplicate key (the message names it), or the text is nested too
            deeply.
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
        raise BadResponse(f"duplicate key {shortened(twice, MAX_REASON)!r}")
