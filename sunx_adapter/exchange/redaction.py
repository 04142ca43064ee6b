"""Redaction: all text that leaves the package passes :func:`cleaned`.

That is text in exceptions, logs, statuses and on the command line. It loses its secrets, in any
encoding that a peer may repeat them in, and the control characters that would steer a terminal.
A text that was cut (:func:`sunx_adapter.text.shortened`) also loses the beginning of a secret at
its end.
"""

import base64
import binascii
import logging
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

from sunx_adapter.protocol.signing import mask
from sunx_adapter.text import CUT, printable, shortened

HIDDEN: Final = "***"

MAX_TEXT: Final = 8192
"""A longer text is cut: a peer's text must not take long to clean."""

# Anything shorter is no venue's key or secret, and may be part of any word.
_SHORTEST_SECRET: Final = 6
_SHORTEST_LINE: Final = 16

_NAMED: Final = r"""\b%s(?:\\?["'])?\s*(?:=|%%3D|:)\s*(?:\\?["'])?"""
_WORDS: Final = re.compile(r"[A-Za-z0-9]+")
_SIGNATURE: Final = re.compile(rf"""({_NAMED % "Signature"})[^&\s"'<>\\]+""", re.I)
_ACCESS_KEY: Final = re.compile(rf"""({_NAMED % "AccessKeyId"})([^&\s"'<>\\]+)""", re.I)
_BACKSLASHES: Final = r"(?<!\\)\\+"  # from the first one on: else each would be tried
_ALSO: Final = {
    "+": "|-|&plus;",
    "/": rf"|_|{_BACKSLASHES}/|&sol;",
    "=": "|&equals;",
    "&": "|&amp;",
}
"""Other spellings: of Base64 in URLs, in JSON with escaped slashes, in HTML."""

_AT_CUT: Final = rf"(?=(?:[%&\\][^\s{CUT}]{{0,40}})?{CUT})"
"""The end of a cut text, perhaps in the middle of an escaped letter."""

_USER_IN_URL: Final = re.compile(r"(\w://)[^/@\s]*@")


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
    for secret in secrets:
        for part in _parts(secret or ""):
            if _may_hold(text, part):
                text = _spellings(part).sub(HIDDEN, text)
    if api_key and len(api_key) >= _SHORTEST_SECRET and _may_hold(text, api_key):
        text = _spellings(api_key).sub(lambda _: mask(api_key), text)
    text = _USER_IN_URL.sub(rf"\1{HIDDEN}@", text)
    text = _SIGNATURE.sub(rf"\1{HIDDEN}", text)
    text = _ACCESS_KEY.sub(lambda match: match[1] + _masked_once(match[2]), text)
    return printable(text)


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


def _may_hold(text: str, secret: str) -> bool:
    # A pattern takes milliseconds to compile; most encodings leave letters and digits alone.
    digest, length = _hexadecimal(secret), _SHORTEST_SECRET if CUT in text else len(secret)
    longest = max(_WORDS.findall(secret[:length]), key=len, default="")
    escaped = sum(map(text.count, ("%", "&#", "\\u")))
    return longest in text or escaped >= length // 2 or digest[:length] in text.lower()


def _hexadecimal(secret: str) -> str:
    try:
        digest = base64.b64decode(secret, validate=True).hex()
    except (binascii.Error, ValueError):
        digest = ""
    return digest if len(digest) >= _SHORTEST_LINE else secret


@lru_cache(maxsize=256)
def _spellings(secret: str) -> re.Pattern[str]:
    """A secret: plain, percent-encoded once or twice, escaped for JSON or HTML, or as hex."""
    bare = secret.rstrip("=")
    written = _cuttable(map(_letter, bare)) + f"(?:{_letter('=')})*" * (bare != secret)
    return re.compile(f"{written}|(?i:{_cuttable(map(re.escape, _hexadecimal(secret)))})")


def _cuttable(letters: Iterable[str]) -> str:
    """The pattern of these letters, or of so many of them as come before a cut."""
    return "".join(
        letter if index < _SHORTEST_SECRET else f"(?:{letter}|{_AT_CUT})"
        for index, letter in enumerate(letters)
    )


@cache
def _letter(letter: str) -> str:
    spelled = "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "replace"))
    number = ord(letter)
    also = _ALSO.get(letter, "")
    codes = rf"{_BACKSLASHES}u{number:04x}|&#0*{number};|&#x0*{number:x};"
    return f"(?:{re.escape(letter)}{also}|(?i:{spelled}|{codes}))"


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
