"""What must never be seen: secrets and signatures; and the API key only masked."""

import html
import logging
import re
from collections.abc import Iterable
from functools import cache
from typing import Final, TypeVar
from urllib.parse import parse_qs, quote

import httpx

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.protocol.signing import mask
from sunx_adapter.transport.request import request_url

Anything = TypeVar("Anything", bound=Exception)

_SIGNATURE: Final = re.compile(r"""(\bSignature(?:=|%3D|["']\s*:\s*["']))[^&\s"'<>]+""", re.I)
# What is shorter is no venue's key, and may be part of any word.
_SHORTEST_SECRET: Final = 6
_ACCESS_KEY: Final = re.compile(r"""(\bAccessKeyId(?:=|%3D|["']\s*:\s*["']))([^&\s"'<>]+)""", re.I)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (redacted := redact(message)) != message:
            record.msg, record.args = redacted, None
        return True


@cache
def redact_logs() -> None:
    """Mask keys and signatures in what the HTTP libraries log: addresses, and echoes of them."""
    for name in ("httpx", "httpcore.http11", "httpcore.connection", "httpcore.proxy"):
        logging.getLogger(name).addFilter(_Redaction())


def without_signature(error: Anything, request: httpx.Request) -> Anything:
    """The error with the signature of just this request taken out, however it is written in it."""
    wrapped = error.error if isinstance(error, TransientError) else error
    secrets = signatures(request)
    for told in (error, wrapped):
        told.args = tuple(redact(str(part), secrets=secrets) for part in told.args)
    return error


def signatures(request: httpx.Request) -> tuple[str, ...]:
    """The ways in which the signature of a request may be repeated by who got it."""
    query = parse_qs(request_url(request).partition("?")[2], keep_blank_values=True)
    raw = query.get("Signature", [""])[0]
    return (raw, quote(raw, safe=""), quote(quote(raw, safe=""), safe=""), html.escape(raw))


def redact(text: str, *, api_key: str | None = None, secrets: Iterable[str | None] = ()) -> str:
    """The text with signatures and secrets taken out and API keys masked.

    Args:
        text: anything on its way to a log, an exception or a terminal.
        api_key: the key to look for as such, besides any value of ``AccessKeyId``.
        secrets: values to take out wherever they stand.
    """
    text = _SIGNATURE.sub(r"\1***", text)
    text = _ACCESS_KEY.sub(lambda match: match[1] + mask(match[2]), text)
    for secret in secrets:
        if secret and len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    if api_key and len(api_key) >= _SHORTEST_SECRET:
        text = text.replace(api_key, mask(api_key))
    return text
