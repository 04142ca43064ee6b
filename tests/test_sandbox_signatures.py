"""The sandbox verifies signatures with its own code: known good ones and a client's mistakes."""

import base64
import hashlib
import hmac
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

import httpx
import pytest
from ccxt.base.errors import AuthenticationError, InvalidNonce

from sunx_adapter import Sunx
from sunx_adapter.protocol import signing
from sunx_adapter.sandbox import Sandbox, SandboxAccount

ACCOUNT = SandboxAccount(
    name="known",
    uid="1",
    api_key="known-good-key",
    secret="known-good-secret",
    private_key=base64.b64encode(b"known-good-private-key..........").decode(),
)
NOW = 1759042264.0

# Made by OpenSSL from texts written by hand after the venues' rule, without this package's code.
KNOWN_GOOD = {
    "HmacSHA256": (
        "/v5/account/balance?AccessKeyId=known-good-key&SignatureMethod=HmacSHA256"
        "&SignatureVersion=2&Timestamp=2025-09-28T06%3A51%3A04&a%20b=x%3A%2B%2F%3D~%2C%C3%A9"
        "&Signature=0Pcq5yGwIxtfoLYsI7AyZLCAFadG%2FSLkSGRwgFcjoOg%3D"
    ),
    "Ed25519": (
        "/sapi/v1/account/balance?AccessKeyId=known-good-key&SignatureMethod=Ed25519"
        "&SignatureVersion=2&Timestamp=2025-09-28T06%3A51%3A04"
        "&Signature=RI%2B0l6Cs3DI77qh4rl1QKJ7JFKdRVYJXSam6yh4YHsmvmDzPVTOypFB9xlbOhKU3Czom4TkDrD"
        "sbU1XYTgmIBg%3D%3D"
    ),
}


@pytest.fixture
def code() -> Iterator[Callable[[str], object]]:
    """Return a function that gives the code a target is answered with."""
    with (
        Sandbox([ACCOUNT], clock=lambda: NOW) as sandbox,
        httpx.Client(trust_env=False) as client,
    ):
        yield lambda target: client.get(f"{sandbox.url}{target}").json()["code"]


@pytest.mark.parametrize("method", KNOWN_GOOD)
def test_accepts_known_good_signatures(code: Callable[[str], object], method: str) -> None:
    """A signature made by OpenSSL is accepted, but not for another text."""
    target = KNOWN_GOOD[method]
    wrong = 1003 if target.startswith("/v5/") else 12008
    assert code(target) == 200
    assert code(target.replace("A51%3A04", "A51%3A05")) == wrong


def signed(
    *,
    host: str = "api.hbdm.com",
    method: str = "GET",
    sort: Callable[[list[str]], list[str]] = sorted,
    encode: Callable[[str], str] = lambda text: quote(text, safe=""),
    digest: Callable[[bytes, bytes], str] = lambda secret, text: base64.b64encode(
        hmac.digest(secret, text, "sha256")
    ).decode(),
    end: str = "",
) -> str:
    """Return a signed target, correct except for what the arguments change."""
    path = "/v5/account/balance"
    fields = {
        "SignatureVersion": "2",
        "SignatureMethod": "HmacSHA256",
        "Timestamp": "2025-09-28T06:51:04",
        "AccessKeyId": "known-good-key",
        "note": "a b",
    }
    query = "&".join(sort([f"{name}={encode(value)}" for name, value in fields.items()]))
    text = f"{method}\n{host}\n{path}\n{query}{end}"
    signature = digest(b"known-good-secret", text.encode())
    return f"{path}?{query}&Signature={quote(signature, safe='')}"


MISTAKES = {
    "not sorted": lambda: signed(sort=list),
    "sorted the other way": lambda: signed(sort=lambda parts: sorted(parts, reverse=True)),
    "plus for a space": lambda: signed(encode=quote_plus),
    "lower-case hex": lambda: signed(
        encode=lambda text: quote(text, safe="").replace("%3A", "%3a")
    ),
    "not encoded": lambda: signed(encode=lambda text: quote(text, safe=":")),
    "method in lower case": lambda: signed(method="get"),
    "host in upper case": lambda: signed(host="API.HBDM.COM"),
    "host with port": lambda: signed(host="api.hbdm.com:443"),
    "another host": lambda: signed(host="api.huobi.pro"),
    "line feed at the end": lambda: signed(end="\n"),
    "hex digest": lambda: signed(digest=lambda key, text: hmac.digest(key, text, "sha256").hex()),
    "SHA-1": lambda: signed(
        digest=lambda key, text: base64.b64encode(hmac.digest(key, text, "sha1")).decode()
    ),
    "no HMAC": lambda: signed(
        digest=lambda key, text: base64.b64encode(hashlib.sha256(key + text).digest()).decode()
    ),
}


def test_the_helper_signs_correctly(code: Callable[[str], object]) -> None:
    """A signature of the helper without a mistake is accepted."""
    assert code(signed()) == 200


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refuses_mistakes(code: Callable[[str], object], mistake: str) -> None:
    """A client that breaks a rule is refused, even if it signs exactly what it sends."""
    assert code(MISTAKES[mistake]()) == 1003


right_text, right_query, right_time = (
    signing.signature_text,
    signing.encode_query,
    signing.timestamp_text,
)
BROKEN: dict[str, Callable[..., str]] = {
    "signature_text": lambda *parts: right_text(*parts).lower(),
    "encode_query": lambda values: "&".join(reversed(right_query(values).split("&"))),
    "timestamp_text": lambda milliseconds: right_time(milliseconds).replace("T", " "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_client_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The sandbox refuses a client whose signing code has a mistake."""
    with Sandbox() as sandbox:
        with Sunx(sandbox.config("sunx")) as exchange:
            assert exchange.fetch_balance()["total"]
            monkeypatch.setattr(signing, name, BROKEN[name])
        options = {"maxRetriesOnFailure": 0}
        with (
            Sunx({**sandbox.config("sunx"), "options": options}) as exchange,
            pytest.raises((AuthenticationError, InvalidNonce)),
        ):
            exchange.fetch_balance()
        assert sandbox.requests[-1].code in {12008, 12001}


def test_shares_no_code_with_the_client() -> None:
    """Serving a signed read imports none of the client's signing code."""
    script = (
        "import sys\n"
        "from sunx_adapter.sandbox import Sandbox\n"
        "Sandbox()\n"
        "print([name for name in sys.modules if name.endswith('protocol.signing')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
