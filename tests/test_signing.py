import base64
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import ccxt
import pytest
from ccxt.base.errors import AuthenticationError, BadRequest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sunx_adapter.protocol.signing import (
    Credentials,
    Ed25519Signer,
    HmacSigner,
    encode_query,
    signature_text,
    signed_host,
    signed_query,
    timestamp_text,
)

API_KEY, SECRET, NOW = "made-up-access-key", "made-up-secret", 1_758_006_975_000
RAW_KEY = bytes(range(32))
AWKWARD = {
    "space": "a b",
    "colon": "12:30",
    "plus": "1+1",
    "slash": "a/b",
    "equals": "a=b",
    "tilde": "~a",
    "comma": "a,b",
    "unicode": "é漢字🚀",
    "empty": "",
    "percent": "100%",
}


def ccxt_query(parameters: dict[str, Any]) -> str:
    """Return what ccxt's own htx signs, for its endpoints with one list of sorted parameters."""
    htx = ccxt.htx({"apiKey": API_KEY, "secret": SECRET, "hostname": "api.hbdm.com"})
    htx.nonce = lambda: NOW
    url: str = htx.sign("orders", ["private"], "GET", parameters)["url"]
    return urlsplit(url).query


def our_query(parameters: dict[str, Any]) -> str:
    return signed_query(
        Credentials(API_KEY, HmacSigner(SECRET)),
        host="api.hbdm.com",
        path="/v1/orders",
        parameters=parameters,
        milliseconds=NOW,
    )


def in_parts(query: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in query.split("&"))


@pytest.mark.parametrize("parameters", [{}, AWKWARD, {"b": "2", "a": "1"}, {"A": "1", "Z": "2"}])
def test_hmac_is_ccxts(parameters: dict[str, str]) -> None:
    """The HMAC-SHA256 signature and the encoded parameters equal those of ccxt."""
    assert in_parts(our_query(parameters)) == in_parts(ccxt_query(parameters))


# Any text that UTF-8 can encode.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


RESERVED = {"AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp", "Signature"}


@settings(deadline=None)
@given(st.dictionaries(ANY_TEXT.filter(lambda name: name not in {"", *RESERVED}), ANY_TEXT))
def test_hmac_is_ccxts_for_any_text(parameters: dict[str, str]) -> None:
    """The same holds for any text as names and values."""
    assert in_parts(our_query(parameters)) == in_parts(ccxt_query(parameters))


def test_hmac_is_openssls() -> None:
    """OpenSSL computes the same HMAC of the text to sign."""
    text = signature_text("GET", "api.sunx.io", "/sapi/v1/account/balance", "A=1")
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", SECRET, "-binary"],
        input=text.encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert HmacSigner(SECRET).sign(text) == base64.b64encode(digest).decode()


def test_text_to_sign() -> None:
    """The text to sign is method, host, path and sorted query, one per line."""
    query = encode_query({"b": "2 3", "Z": "1"})
    assert signature_text("GET", "API.SunX.io:443", "/sapi/v1/account/balance", query) == (
        "GET\napi.sunx.io\n/sapi/v1/account/balance\nZ=1&b=2%203"
    )


@pytest.mark.parametrize(
    ("host", "signed"),
    [
        ("API.HBDM.COM", "api.hbdm.com"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("[::1]:8080", "[::1]"),
        ("[::1]", "[::1]"),
    ],
)
def test_signed_host(host: str, signed: str) -> None:
    """The signed host is in lower case and without a port."""
    assert signed_host(host) == signed


def test_time_is_utc() -> None:
    """The timestamp is in UTC, to the second, as in SunX's example."""
    assert timestamp_text(1_758_006_975_999) == "2025-09-16T07:16:15"


def test_sorting_is_ascii() -> None:
    """Parameters are sorted in ASCII order, capitals first."""
    assert list(in_parts(our_query({"aa": "1", "Zz": "2", "B": "3"}))) == [
        *("AccessKeyId", "B", "SignatureMethod", "SignatureVersion", "Timestamp", "Zz", "aa"),
        "Signature",
    ]


def private_key_texts() -> dict[str, str]:
    key = Ed25519PrivateKey.from_private_bytes(RAW_KEY)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "raw": base64.b64encode(RAW_KEY).decode(),
        "der": base64.b64encode(der).decode(),
        "der on lines": base64.encodebytes(der).decode(),
        "pem": pem.decode(),
        "pem, indented": "\n  " + pem.decode(),
    }


@pytest.mark.parametrize("form", list(private_key_texts()))
def test_ed25519_verifies(form: str) -> None:
    """An Ed25519 signature verifies with the public key, in every accepted form of the key."""
    query = signed_query(
        Credentials(API_KEY, Ed25519Signer(private_key_texts()[form])),
        host="api.sunx.io",
        path="/sapi/v1/account/balance",
        parameters=AWKWARD,
        milliseconds=NOW,
    )
    unsigned, _, signature = query.rpartition("&Signature=")
    assert dict(parse_qsl(unsigned))["SignatureMethod"] == "Ed25519"
    Ed25519PrivateKey.from_private_bytes(RAW_KEY).public_key().verify(
        base64.b64decode(unquote(signature)),
        f"GET\napi.sunx.io\n/sapi/v1/account/balance\n{unsigned}".encode(),
    )


def test_ed25519_is_openssls(tmp_path: Path) -> None:
    """OpenSSL computes the same Ed25519 signature."""
    texts = private_key_texts()
    (tmp_path / "key.pem").write_text(texts["pem"])
    (tmp_path / "text").write_bytes(b"GET\nhost\n/path\nA=1")
    signature = subprocess.run(
        ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", "text"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    assert Ed25519Signer(texts["raw"]).sign("GET\nhost\n/path\nA=1") == (
        base64.b64encode(signature).decode()
    )


@pytest.mark.parametrize(
    "text",
    ["", "no key", base64.b64encode(b"short").decode(), "-----BEGIN PRIVATE KEY-----\nsecretpart"],
)
def test_bad_private_key(text: str) -> None:
    """An invalid private key is refused; the error lists the accepted forms, not the text."""
    with pytest.raises(AuthenticationError, match="PEM, or Base64") as caught:
        Ed25519Signer(text)
    assert "secretpart" not in str(caught.value)
    assert caught.value.__context__ is None


def test_key_of_another_algorithm() -> None:
    """A private key of another algorithm is refused."""
    der = generate_private_key(SECP256R1()).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    assert load_der_private_key(der, password=None) is not None
    with pytest.raises(AuthenticationError):
        Ed25519Signer(base64.b64encode(der).decode())


def test_none_is_omitted() -> None:
    """A parameter that is None is omitted; booleans and numbers become text."""
    assert encode_query({"a": None, "b": True, "c": 7, "d": 0.5}) == "b=true&c=7&d=0.5"


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", object()])
def test_unsupported_values(value: object) -> None:
    """A value of a type without a defined encoding is refused by name."""
    with pytest.raises(BadRequest, match="'symbols'"):
        encode_query({"symbols": value})


def test_reserved_names() -> None:
    """A parameter named like one of the signature's own is refused."""
    with pytest.raises(BadRequest, match="Timestamp"):
        our_query({"Timestamp": "2020-01-01T00:00:00"})


def test_no_repr_shows_the_secret() -> None:
    """No repr of a signer has the secret or the full API key."""
    hmac, ed25519 = HmacSigner(SECRET), Ed25519Signer(private_key_texts()["raw"])
    shown = json.dumps([repr(Credentials(API_KEY, hmac)), repr(Credentials(API_KEY, ed25519))])
    assert SECRET not in shown
    assert API_KEY not in shown
    assert private_key_texts()["raw"] not in shown
