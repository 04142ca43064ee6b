"""Who may read: the checks of a signed request, in the venues' order. No I/O, no clock.

The rules are HTX's ("Authentication" in its futures manual; SunX uses the same). A check that
fails raises :class:`Refused` with the venue's code.
"""

import base64
import binascii
import calendar
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote_plus

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sunx_adapter.protocol.signing import HmacSigner, encode_query, signature_text, timestamp_text
from sunx_adapter.sandbox.accounts import SandboxAccount
from sunx_adapter.venue import VENUES, PathVariantName

CLOCK_TOLERANCE_MS: Final = 5 * 60 * 1000
"""How far a request's ``Timestamp`` may be off the venue's clock, either way."""

VENUE_HOSTS: Final = tuple(
    host for venue in VENUES.values() for host in (venue.hostname, *venue.other_hostnames)
)
"""A request that came through a gateway is signed for one of these."""

RefusalShape = Literal["status", "message", "msg", "hyphen"]


class Refused(Exception):  # noqa: N818 - an outcome, not an error of this program
    """The venue says no.

    Attributes:
        code: of the venues' error lists.
        message: the text beside it.
        shape: ``"status"``: ``{"status":"error","err_code":…,"err_msg":…,"ts":…}``;
            ``"message"``: ``{"code":…,"message":…}``;
            ``"msg"``: ``{"code":"…","msg":…,"data":null,"ts":"…"}``;
            ``"hyphen"``: ``{"status":"error","err-code":"…","err-msg":…,"data":null}``.
            All four have been seen.
        http_status: 200 for most refusals.
    """

    def __init__(
        self,
        code: int | str,
        message: str,
        *,
        shape: RefusalShape = "message",
        http_status: int = 200,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.shape: RefusalShape = shape
        self.http_status = http_status


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in.

    Attributes:
        method: ``"GET"``.
        path: as sent, up to the question mark.
        query: as sent, after it; percent-encoding untouched. Not in the repr: it has the key.
        host: the Host header, or empty.
    """

    method: str
    path: str
    query: str
    host: str

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    value: str
    sent: str


def authenticate(
    request: Request,
    accounts: Mapping[str, SandboxAccount],
    *,
    variant: PathVariantName,
    milliseconds: int,
) -> SandboxAccount:
    """The account whose key signed the request.

    Args:
        request: as it came in.
        accounts: by API key.
        variant: of the path; the two name a wrong signature differently.
        milliseconds: the venue's time, ms UTC.

    Raises:
        Refused: the first check that failed, in this order: key, signature version, signature
            method, timestamp, signature.
    """
    parameters = parse_query(request.query)
    values = {parameter.name: parameter.value for parameter in parameters}
    account = accounts.get(values.get("AccessKeyId", ""))
    if account is None:
        raise Refused(403, "Incorrect Access key [Access key错误]", shape="status")
    if values.get("SignatureVersion") != "2":
        raise Refused(12002, "Incorrect signature version")
    method = values.get("SignatureMethod", "")
    if method not in account.signature_methods:
        raise Refused(12003, "Incorrect signature method")
    _check_timestamp(values.get("Timestamp", ""), milliseconds)
    if not _is_signed(request, parameters, account, method):
        raise _wrong_signature(variant)
    return account


def parse_query(query: str) -> list[_Parameter]:
    """The parameters in the order sent, decoded as a web server decodes them (``+`` is a space)."""
    parameters = []
    for sent in filter(None, query.split("&")):
        name, _, value = sent.partition("=")
        parameters.append(_Parameter(unquote_plus(name), unquote_plus(value), sent))
    return parameters


def _check_timestamp(text: str, milliseconds: int) -> None:
    if not text:
        raise Refused(12006, "Submission time can not be empty")
    sent = _timestamp_ms(text)
    if sent is None or abs(milliseconds - sent) > CLOCK_TOLERANCE_MS:
        raise Refused(12001, "Invalid submission time")


def _timestamp_ms(text: str) -> int | None:
    try:
        seconds = calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
        # The parser also takes "2025-9-6T7:16:15"; the venues do not.
        return seconds * 1000 if timestamp_text(seconds * 1000) == text else None
    except (ValueError, OverflowError, OSError):
        return None


def _is_signed(
    request: Request, parameters: list[_Parameter], account: SandboxAccount, method: str
) -> bool:
    signature = "".join(p.value for p in parameters if p.name == "Signature")
    signed = sorted((p for p in parameters if p.name != "Signature"), key=lambda p: p.name)
    query = "&".join(parameter.sent for parameter in signed)
    # What was sent must itself be in the form that the rule demands: a client that neither
    # encodes what it signs nor what it sends would agree with itself, but not with a venue.
    if query != encode_query({parameter.name: parameter.value for parameter in signed}):
        return False
    texts = [
        signature_text(request.method, host, request.path, query)
        for host in (request.host, *VENUE_HOSTS)
        if host.isascii()
    ]
    matches = _matches_hmac if method == "HmacSHA256" else _matches_ed25519
    return any(matches(account, text, signature) for text in texts)


def _matches_hmac(account: SandboxAccount, text: str, signature: str) -> bool:
    expected = HmacSigner(account.secret or "").sign(text)
    return hmac.compare_digest(expected.encode(), signature.encode())


def _matches_ed25519(account: SandboxAccount, text: str, signature: str) -> bool:
    public_key = Ed25519PrivateKey.from_private_bytes(account.raw_private_key).public_key()
    try:
        public_key.verify(base64.b64decode(signature, validate=True), text.encode())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _wrong_signature(variant: PathVariantName) -> Refused:
    if variant == "v5":
        return Refused(1003, "invalid signature")
    return Refused(12008, "Verification failed")
