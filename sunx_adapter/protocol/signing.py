"""Signing of requests and of the push channel's login, version 2.

The rule is HTX's ("Authentication" in its futures manual; SunX uses the same): the text to sign
is the method, the host in lower case and without port, the path, and the percent-encoded
parameters sorted by name in ASCII order, joined by line feeds. All functions here are pure: the
caller passes the time.
"""

import base64
import binascii
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal, Protocol
from urllib.parse import quote

from ccxt.base.errors import AuthenticationError, BadRequest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

SignatureMethod = Literal["HmacSHA256", "Ed25519"]

ED25519_KEY_BYTES = 32


class Signer(Protocol):
    """Signs texts with a secret. Its repr shows only the method."""

    @property
    def method(self) -> SignatureMethod:
        """The value of ``SignatureMethod``."""
        ...

    def sign(self, text: str) -> str:
        """The Base64 signature of the UTF-8 text."""
        ...


class HmacSigner:
    """Signs with HMAC-SHA256 and the key's secret."""

    method: SignatureMethod = "HmacSHA256"

    def __init__(self, secret: str) -> None:
        # Copied for each text, so that the secret is processed only once.
        self._mac = hmac.new(secret.encode(), digestmod="sha256")

    def __repr__(self) -> str:
        return "HmacSigner(***)"

    def sign(self, text: str) -> str:
        """The Base64 signature of the UTF-8 text."""
        mac = self._mac.copy()
        mac.update(text.encode())
        return base64.b64encode(mac.digest()).decode()


class Ed25519Signer:
    """Signs with an Ed25519 private key.

    Args:
        private_key: PEM, or Base64 of the raw 32 bytes or of PKCS#8 DER.

    Raises:
        AuthenticationError: the text has none of these forms, or is not an Ed25519 key.
    """

    method: SignatureMethod = "Ed25519"

    def __init__(self, private_key: str) -> None:
        self._key = _load_ed25519(private_key)

    def __repr__(self) -> str:
        return "Ed25519Signer(***)"

    def sign(self, text: str) -> str:
        """The Base64 signature of the UTF-8 text."""
        return base64.b64encode(self._key.sign(text.encode())).decode()


def _load_ed25519(text: str) -> Ed25519PrivateKey:
    try:
        if text.lstrip().startswith("-----BEGIN"):
            key = load_pem_private_key(text.encode(), password=None)
        else:
            raw = base64.b64decode("".join(text.split()), validate=True)
            if len(raw) == ED25519_KEY_BYTES:
                return Ed25519PrivateKey.from_private_bytes(raw)
            key = load_der_private_key(raw, password=None)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PrivateKey):
        return key
    # Raised outside the handler: the parser's own exception may quote the key.
    raise AuthenticationError(
        "privateKey is not an Ed25519 private key: it must be unencrypted PEM, or Base64 of the "
        "raw 32 bytes or of PKCS#8 DER"
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """An API key and its signer. The repr masks the key."""

    api_key: str
    signer: Signer

    def __repr__(self) -> str:
        return f"Credentials({mask(self.api_key)}, {self.signer!r})"


def mask(api_key: str) -> str:
    """The API key, masked: its first four characters distinguish keys."""
    return f"{api_key[:4]}***" if len(api_key) > 8 else "***"  # noqa: PLR2004


def timestamp_text(milliseconds: int) -> str:
    """The text for ``Timestamp``, UTC: ``"2025-09-16T07:16:15"`` for ``1758006975000``."""
    return utc_text(milliseconds // 1000)


@lru_cache(maxsize=64)
def utc_text(seconds: int) -> str:
    """A time in seconds UTC as ``YYYY-MM-DDThh:mm:ss``."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def encode_query(parameters: Mapping[str, object]) -> str:
    """The canonical query: names sorted in ASCII order, percent-encoded (space is ``%20``).

    Args:
        parameters: texts, numbers or booleans by name; a parameter that is ``None`` is left out.

    Raises:
        BadRequest: a value of another type.
    """
    return "&".join(
        [
            _pair(name, _scalar(name, parameters[name]))
            for name in sorted(parameters)
            if parameters[name] is not None
        ]
    )


@lru_cache(maxsize=4096)
def _pair(name: str, value: str) -> str:
    # Cached, since only the time changes. No secret and no signature passes through here.
    return f"{quote(name, safe='')}={quote(value, safe='')}"


def _scalar(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    raise BadRequest(f"parameter {name!r} must be text, a number or a boolean")


def signature_text(method: str, host: str, path: str, query: str) -> str:
    """The text that is signed.

    Args:
        method: ``"GET"``.
        host: the host; the text has it in lower case and without port, as the venues require.
        path: the path, with its leading slash.
        query: the result of :func:`encode_query`.
    """
    return f"{method}\n{signed_host(host)}\n{path}\n{query}"


@lru_cache(maxsize=256)
def signed_host(host: str) -> str:
    """The host in the text to sign: lower case, without port."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and not name.endswith(":"):
        host = name
    return host.lower()


def authentication_parameters(credentials: Credentials, milliseconds: int) -> dict[str, object]:
    """The parameters that signing adds to a request, except the signature."""
    return {
        "AccessKeyId": credentials.api_key,
        "SignatureMethod": credentials.signer.method,
        "SignatureVersion": "2",
        "Timestamp": timestamp_text(milliseconds),
    }


def signed_query(
    credentials: Credentials,
    *,
    host: str,
    path: str,
    parameters: Mapping[str, object],
    milliseconds: int,
    method: str = "GET",
) -> str:
    """The query of a signed request, the signature last.

    Args:
        credentials: key and signer.
        host: the venue's host, even if the request goes through a gateway.
        path: the path, with its leading slash.
        parameters: the request's own parameters, which are signed, too.
        milliseconds: the time to sign for, ms UTC.
        method: the HTTP method.

    Raises:
        BadRequest: a parameter's type cannot be encoded, or an authentication parameter has the
            same name.
    """
    signed = authentication_parameters(credentials, milliseconds)
    if parameters:
        if reserved := (signed.keys() | {"Signature"}) & parameters.keys():
            raise BadRequest(f"parameter {min(reserved)!r} is set by signing")
        signed.update(parameters)
    query = encode_query(signed)
    signature = credentials.signer.sign(signature_text(method, host, path, query))
    # Only these three of Base64's characters need encoding.
    encoded = signature.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    return f"{query}&Signature={encoded}"
