"""Checks signed requests, in the venues' order. No I/O, no clock.

The rules are HTX's ("Authentication" in its futures manual; SunX uses the same). This code shares
nothing with the client's signing, so the sandbox detects mistakes made there.
"""

import base64
import hmac
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from operator import itemgetter
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sunx_adapter.sandbox.accounts import AccountBook, SandboxAccount
from sunx_adapter.sandbox.answers import UNKNOWN_KEY, HttpRequest, Refused
from sunx_adapter.venue import VENUES, PathVariantName

CLOCK_TOLERANCE_MS: Final = 5 * 60 * 1000
"""The largest accepted difference between a request's ``Timestamp`` and the venue's clock."""

VENUE_HOSTS: Final = tuple(
    host for venue in VENUES.values() for host in (venue.hostname, *venue.other_hostnames)
)
"""A request through a gateway is signed for one of these hosts."""

_PORT: Final = re.compile(r":[0-9]+$")


def authenticate(
    request: HttpRequest, accounts: AccountBook, variant: PathVariantName
) -> SandboxAccount:
    """The account whose key signed the request; each path variant has its code for a wrong one.

    Raises:
        Refused: a check failed; the first one decides.
    """
    parameters = parse_qsl(request.query, keep_blank_values=True)
    values = dict(parameters)
    account = accounts.with_key(values.get("AccessKeyId", ""))
    if account is None:
        raise Refused(UNKNOWN_KEY, "Incorrect Access key [Access key错误]")
    if values.get("SignatureVersion") != "2":
        raise Refused(12002, "Incorrect signature version")
    method = values.get("SignatureMethod", "")
    if method not in account.signature_methods:
        raise Refused(12003, "Incorrect signature method")
    _check_time(values.get("Timestamp", ""), request.time_ms)
    if len(values) < len(parameters) or not _is_signed(request, values, account, method):
        wrong = (1003, "invalid signature") if variant == "v5" else (12008, "Verification failed")
        raise Refused(*wrong)
    return account


def _is_signed(
    request: HttpRequest, values: dict[str, str], account: SandboxAccount, method: str
) -> bool:
    signature = values.pop("Signature", "")
    query = canonical_query(values.items())
    # The query must be sent in the canonical encoding too. Otherwise a client that encodes neither
    # the signed nor the sent query would be accepted here, but not by a venue.
    sent = [part for part in request.query.split("&") if part.partition("=")[0] != "Signature"]
    if sorted(filter(None, sent)) != sorted(query.split("&")):
        return False
    hosts = (_PORT.sub("", host).lower() for host in (request.host, *VENUE_HOSTS) if host.isascii())
    texts = ("\n".join((request.method, host, request.path, query)) for host in hosts)
    return any(_is_signature(signature, text.encode(), account, method) for text in texts)


def canonical_query(parameters: Iterable[tuple[str, str]]) -> str:
    """The query to sign: sorted by name, percent-encoded (RFC 3986, UTF-8)."""
    pairs = sorted(parameters, key=itemgetter(0))
    return urlencode(pairs, safe="", errors="replace", quote_via=quote)


def _check_time(text: str, now_ms: int) -> None:
    if not text:
        raise Refused(12006, "Submission time can not be empty")
    with suppress(ValueError):
        sent = datetime.fromisoformat(f"{text}+00:00")
        # fromisoformat() also accepts "20250906T071615"; the venues do not.
        is_exact = sent.isoformat(timespec="seconds") == f"{text}+00:00"
        if is_exact and abs(now_ms - sent.timestamp() * 1000) <= CLOCK_TOLERANCE_MS:
            return
    raise Refused(12001, "Invalid submission time")


def _is_signature(signature: str, text: bytes, account: SandboxAccount, method: str) -> bool:
    with suppress(ValueError, InvalidSignature):  # of text that is not Base64
        given = base64.b64decode(signature, validate=True)
        if method == "HmacSHA256":
            expected = hmac.digest((account.secret or "").encode(), text, "sha256")
            return hmac.compare_digest(given, expected)
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(account.private_key or ""))
        key.public_key().verify(given, text)
        return True
    return False
