"""Exact JSON: every answer is decoded once, and no digit of any number is lost."""

import json
import threading
from collections import Counter
from decimal import Decimal
from typing import Any

import msgspec
from ccxt.base.errors import BadResponse

MAX_REASON = 120


class Document(msgspec.Struct, frozen=True):
    """One decoded JSON text.

    Attributes:
        wire: the value, numbers with a fraction or exponent as exact ``Decimal``.
        info: the same as any JSON library gives it (such numbers as ``float``), for users.
            The very same object as ``wire`` unless there is such a number.
    """

    wire: Any
    info: Any


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
        return Document(wire, _with_floats(wire) if self.saw_fraction else wire)


_decoder = _Decoder()


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


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


def refuse_duplicate_keys(body: bytes, keys: int) -> None:
    """Refuse JSON in which an object has one key twice: which value counts would be a guess.

    Every key is followed by a colon, so a text with as many colons as the decoded value has keys
    has no key twice; only otherwise is it read again, slowly. ``keys`` may be too small.

    Raises:
        BadResponse: a key stands twice in one object; the message names it.
    """
    if body.count(b":") > keys:
        json.loads(body, object_pairs_hook=_refuse_duplicates, parse_float=str, parse_int=str)


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise BadResponse(f"the key {twice!r} stands twice in one object")
