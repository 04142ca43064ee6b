"""Redaction: all text that leaves the package passes :func:`cleaned`.

That is text in exceptions, logs, statuses and on the command line. It loses its secrets, in any
encoding that a peer may repeat them in, and the control characters that would steer a terminal.
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
from sunx_adapter.text import printable

HIDDEN: Final = "***"

# Anything shorter is no venue's key or secret, and may be part of any word.
_SHORTEST_SECRET: Final = 6
_SHORTEST_LINE: Final = 16

_NAMED: Final = r"""\b%s(?:\\?["'])?\s*(?:=|%%3D|:)\s*(?:\\?["'])?"""
_WORDS: Final = re.compile(r"[A-Za-z0-9]+")
_SIGNATURE: Final = re.compile(rf"""({_NAMED % "Signature"})[^&\s"'<>\\]+""", re.I)
_ACCESS_KEY: Final = re.compile(rf"""({_NAMED % "AccessKeyId"})([^&\s"'<>\\]+)""", re.I)
_ALSO: Final = {"+": "|-|&plus;", "/": r"|_|\\+/|&sol;", "=": "|&equals;", "&": "|&amp;"}
"""Other spellings: of Base64 in URLs, in JSON with escaped slashes, in HTML."""

_USER_IN_URL: Final = re.compile(r"(\w://)[^/@\s]*@")


def cleaned(text: str, *, api_key: str | None = None, secrets: Iterable[str | None] = ()) -> str:
    """The text on one line, without secrets and signatures, with API keys masked.

    Args:
        text: any text.
        api_key: the key to mask, besides any value of ``AccessKeyId``.
        secrets: values to remove in every encoding.
    """
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
    longest = max(_WORDS.findall(secret), key=len, default="")
    escaped = sum(map(text.count, ("%", "&#", "\\u")))
    return longest in text or escaped >= len(secret) // 2 or _hexadecimal(secret) in text.lower()


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
    written = "".join(map(_letter, bare)) + f"(?:{_letter('=')})*" * (bare != secret)
    return re.compile(f"{written}|(?i:{re.escape(_hexadecimal(secret))})")


@cache
def _letter(letter: str) -> str:
    spelled = "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "replace"))
    number = ord(letter)
    also = _ALSO.get(letter, "")
    codes = rf"\\+u{number:04x}|&#0*{number};|&#x0*{number:x};"
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
