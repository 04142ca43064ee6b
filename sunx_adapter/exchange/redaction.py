"""Redaction: :func:`cleaned` cleans all text in exceptions, logs, statuses and on the command line.

It removes secrets, in any encoding in which a peer may repeat them, and control characters, which
would steer a terminal. If a text was cut (:func:`sunx_adapter.text.shortened`), it also removes the
beginning of a secret at the end.
"""

import base64
import binascii
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Final
from urllib.parse import unquote, urlsplit

from sunx_adapter.protocol.signing import mask
from sunx_adapter.text import CUT, printable, shortened

HIDDEN: Final = "***"

MAX_TEXT: Final = 8192
"""Longer texts are cut first, because cleaning a peer's text must not take long."""

# No venue's key or secret is shorter, and a shorter text may be part of any word.
_SHORTEST_SECRET: Final = 6
_SHORTEST_LINE: Final = 16

_NAMED: Final = r"""\b%s(?:\\?["'])?\s*(?:=|%%3D|:)\s*(?:\\?["'])?"""
_SIGNATURE: Final = re.compile(rf"""({_NAMED % "Signature"})[^&\s"'<>\\]+""", re.I)
_ACCESS_KEY: Final = re.compile(rf"""({_NAMED % "AccessKeyId"})([^&\s"'<>\\]+)""", re.I)
_USER_IN_URL: Final = re.compile(r"(\w://)[^/@\s]*@")

# Of several backslashes in a row, a match starts at the first one only, for speed.
_ESCAPED: Final = re.compile(
    r"%(?:25)*([0-9a-f]{2})|(?<!\\)\\+u([0-9a-f]{4})|&#x0*([0-9a-f]{1,6});|&#0*([0-9]{1,7});"
    r"|&(plus|sol|equals|amp);|(?<!\\)\\+(?=/)",
    re.I,
)
"""A letter that is percent-encoded (once or more often), or escaped for JSON or HTML."""

_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)
_NAMES: Final = {"plus": "+", "sol": "/", "equals": "=", "amp": "&"}
_URL_SAFE: Final = str.maketrans("-_", "+/")  # the letters of Base64 in URLs

_CUT: Final = re.compile(rf"(?:(?:%|&#?x?|(?<!\\)\\+u?)[0-9A-Za-z]{{0,7}})?{CUT}")
"""The end of a cut text, perhaps in the middle of an escaped letter."""

_MOST_CUTS: Final = 8
"""Only the last cuts are ours; earlier marks are part of a peer's text."""


def cleaned(
    text: str,
    *,
    api_key: str | None = None,
    secrets: Iterable[str | None] = (),
    length: int = MAX_TEXT,
) -> str:
    """The text on one line, without secrets and signatures, with API keys masked.

    Args:
        text: any text.
        api_key: the key to mask, besides any value of ``AccessKeyId``.
        secrets: values to remove in every encoding.
        length: how many characters of the text to clean; the rest is cut.
    """
    text = shortened(text, length)
    plain = _Unescaped(text)
    found = [
        (*span, HIDDEN)
        for secret in secrets
        for part in _parts(secret or "")
        for span in plain.spans(part)
    ]
    if api_key and len(api_key) >= _SHORTEST_SECRET:
        found += [(*span, mask(api_key)) for span in plain.spans(api_key)]
    text = _replaced(text, found)
    text = _USER_IN_URL.sub(rf"\1{HIDDEN}@", text)
    text = _SIGNATURE.sub(rf"\1{HIDDEN}", text)
    text = _ACCESS_KEY.sub(lambda match: match[1] + _masked_once(match[2]), text)
    return printable(text)


def _replaced(text: str, found: Iterable[tuple[int, int, str]]) -> str:
    pieces, done = [], 0
    for start, end, replacement in sorted(found):
        if start >= done:
            pieces += [text[done:start], replacement]
        done = max(done, end)
    return "".join(pieces) + text[done:]


class _Unescaped:
    """A text without its escapes, in which secrets are looked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        letters: list[str] = []
        places: list[int] = []  # each letter's index in the text
        end = 0
        for match in _ESCAPED.finditer(text):
            letter = _unescaped(match)
            letters += [text[end : match.start()], letter]
            places += range(end, match.start())
            places += [match.start()] * len(letter)
            end = match.end()
        self._places: Sequence[int] = [*places, *range(end, len(text) + 1)]
        self._letters = "".join((*letters, text[end:])).translate(_URL_SAFE)
        self._lower = self._letters.translate(_LOWER)
        cuts = [match.start() for match in _CUT.finditer(self._letters)]
        self._cuts = cuts[-_MOST_CUTS:]

    def spans(self, secret: str) -> Iterator[tuple[int, int]]:
        """Where the text has the secret in any encoding, or the secret's beginning before a cut."""
        yield from _occurrences(self._text, secret, ())
        bare = secret.rstrip("=").translate(_URL_SAFE)
        in_bytes = bare.encode("utf-8", "replace").decode("latin-1")  # if percent-encoded
        for form, letters in (
            *((each, self._letters) for each in {bare, in_bytes}),
            (_hexadecimal(secret), self._lower),
        ):
            for start, end in _occurrences(letters, form, self._cuts):
                while secret.endswith("=") and letters.startswith("=", end):
                    end += 1  # noqa: PLW2901
                yield self._places[start], self._places[end]


def _unescaped(match: re.Match[str]) -> str:
    percent, json, html, decimal, name = match.groups()
    if number := percent or json or html:
        return chr(min(int(number, 16), sys.maxunicode))
    if decimal:
        return chr(min(int(decimal), sys.maxunicode))
    return _NAMES[name.lower()] if name else ""


def _occurrences(text: str, secret: str, cuts: Iterable[int]) -> Iterator[tuple[int, int]]:
    start = text.find(secret)
    while start >= 0:
        yield start, start + len(secret)
        start = text.find(secret, start + len(secret))
    for cut in cuts:
        start = text.find(secret[:_SHORTEST_SECRET], max(cut - len(secret), 0), cut)
        while start >= 0 and not secret.startswith(text[start:cut]):
            start = text.find(secret[:_SHORTEST_SECRET], start + 1, cut)
        if start >= 0:
            yield start, cut


def passwords(*urls: object) -> list[str]:
    """The passwords in URLs: encoded, decoded, and as HTTP's Basic authentication sends them."""
    found: list[str] = []
    for url in urls:
        if isinstance(url, str) and "@" in url:
            try:
                parts = urlsplit(url)
            except ValueError:
                continue
            user, password = parts.username or "", parts.password or ""
            basic = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
            found += [password, unquote(password), basic]
    return found


def _masked_once(api_key: str) -> str:
    return api_key if api_key.endswith(HIDDEN) else mask(api_key)


def _parts(secret: str) -> list[str]:
    if "\n" in secret:  # PEM
        lines = secret.split()
        return [line for line in lines if len(line) >= _SHORTEST_LINE and "-" not in line]
    return [secret] if len(secret) >= _SHORTEST_SECRET else []


def _hexadecimal(secret: str) -> str:
    try:
        digest = base64.b64decode(secret, validate=True).hex()
    except (binascii.Error, ValueError):
        digest = ""
    return digest if len(digest) >= _SHORTEST_LINE else secret


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (redacted := cleaned(message)) != message:
            record.msg, record.args = redacted, None
        return True


_LOG_FILTER: Final = _Redaction()


def redact_logs() -> None:
    """Mask keys and signatures in the logs of HTTP libraries, for a user's httpx transport."""
    for name in ("httpx", "httpcore.http11", "httpcore.connection", "httpcore.proxy"):
        logging.getLogger(name).addFilter(_LOG_FILTER)  # adding it twice changes nothing
