import gzip
import socket
import threading
import time
from functools import partial

import httpx
import pytest
from ccxt.base.errors import (
    AuthenticationError,
    BadResponse,
    BaseError,
    ExchangeError,
    ExchangeNotAvailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
)

from tests.conftest import KEYS, Caller, config_for, payload
from tests.faulty import Play, answering, dripping, faulty_server, http, resetting, silent
from tests.ports import free_port

BODY = payload("sunx-documented")
TIMEOUT_MS = 400


config = partial(config_for, timeout=TIMEOUT_MS)

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
FAULTS: list[tuple[str, Play, type[BaseError], str]] = [
    ("closed early", answering(b""), NetworkError, "check the network"),
    ("reset", resetting, NetworkError, "check the network"),
    ("half a head", answering(b"HTTP/1.1 200 OK\r\nContent-"), NetworkError, "check the network"),
    ("fewer bytes", answering(http(BODY, length=2 * len(BODY))), NetworkError, "check the network"),
    ("no HTTP", answering(b"220 mail.example ESMTP\r\n\r\n"), NetworkError, "check the network"),
    ("garbage", answering(bytes(range(256)) * 4), NetworkError, "check the network"),
    ("other protocol", answering(SWITCHING), NetworkError, "check the network"),
    ("silence", silent, RequestTimeout, "400 ms"),
    ("dripping head", dripping(b"HTTP/1.1 200 OK\r\nX-Slow: "), RequestTimeout, "400 ms"),
    ("dripping body", dripping(http(BODY, length=10**6)), RequestTimeout, "400 ms"),
]


@pytest.mark.parametrize(
    ("play", "error", "words"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_faults(call: Caller, play: Play, error: type[BaseError], words: str) -> None:
    """Each network fault raises one exception of exactly this class, soon after the timeout."""
    with faulty_server(play) as address:
        start = time.monotonic()
        with pytest.raises(error, match=words) as caught:
            call("sunx", config(address), "fetch_balance")
        took = time.monotonic() - start
    assert type(caught.value) is error
    assert took < 10 * TIMEOUT_MS / 1000


def test_refused_connection(call: Caller) -> None:
    """If nothing listens at the address, the exception says so."""
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(NetworkError, match="check the network") as caught:
        call("sunx", config(address), "fetch_balance")
    assert type(caught.value) is NetworkError


def test_unknown_host(call: Caller) -> None:
    """An unknown host raises NetworkError that names the address."""
    with pytest.raises(NetworkError, match=r"https://no-such-host\.invalid"):
        call("sunx", config("https://no-such-host.invalid", timeout=5000), "fetch_balance")


def test_not_tls(call: Caller) -> None:
    """A host that does not speak TLS raises NetworkError."""
    with faulty_server(answering(http(BODY))) as address:
        secure = address.replace("http://", "https://")
        with pytest.raises(NetworkError):
            call("sunx", config(secure), "fetch_balance")


def test_redirect_is_not_followed(call: Caller) -> None:
    """A redirect raises BadResponse that names its target; the target is not contacted."""
    asked: list[bool] = []

    def elsewhere(connection: socket.socket, _: threading.Event) -> None:
        asked.append(True)
        connection.sendall(http(BODY))

    with faulty_server(elsewhere) as target:
        location = f"Location: {target}/elsewhere?AccessKeyId=x&Signature=y"
        redirect = http(b"", location, status="302 Found")
        with (
            faulty_server(answering(redirect)) as address,
            pytest.raises(BadResponse, match=f"302 redirects to {target}/elsewhere;") as caught,
        ):
            call("sunx", config(address), "fetch_balance")
    assert not asked
    assert "Signature" not in str(caught.value)


HTML = b"<html><body>Sorry</body></html>"
BODIES: list[tuple[str, bytes, type[BaseError], str]] = [
    ("HTML", http(HTML), BadResponse, "not readable JSON"),
    ("empty", http(b""), BadResponse, "not readable JSON"),
    ("cut off", http(BODY[:-7]), BadResponse, "not readable JSON"),
    ("not UTF-8", http(BODY.replace(b"USDT", b"\xff\xfe")), BadResponse, "not UTF-8"),
    ("two values", http(BODY + b"{}"), BadResponse, "not readable JSON"),
    ("a list", http(b"[]"), BadResponse, "not a JSON object"),
    ("no code", http(b'{"data":{"details":[]}}'), BadResponse, "neither code nor status"),
    ("deep", http(b"[" * 100_000), BadResponse, "nested too deeply"),
    ("502", http(HTML, status="502 Bad Gateway"), ExchangeNotAvailable, "HTTP 502.*Sorry"),
    ("403", http(HTML, status="403 Forbidden"), ExchangeNotAvailable, "HTTP 403"),
    ("401", http(HTML, status="401 Unauthorized"), AuthenticationError, "HTTP 401"),
    ("429", http(HTML, status="429 Too Many Requests"), RateLimitExceeded, "HTTP 429"),
    ("408", http(HTML, status="408 Request Timeout"), RequestTimeout, "HTTP 408"),
    ("418 JSON", http(b"{}", status="418 I'm a teapot"), NetworkError, "HTTP 418"),
    ("599", http(HTML, status="599 Odd"), ExchangeError, "HTTP 599"),
    ("success in 500", http(BODY, status="500 Oops"), ExchangeNotAvailable, "HTTP 500"),
    ("brotli", http(BODY, "Content-Encoding: br"), BadResponse, "encoded as 'br'"),
    ("bad gzip", http(BODY, "Content-Encoding: gzip"), BadResponse, "compression is damaged"),
    (
        "half gzip",
        http(gzip.compress(BODY)[:-20], "Content-Encoding: gzip"),
        BadResponse,
        "compression ends early",
    ),
    ("1 MiB and more", http(b" " * (2**20 + 1)), BadResponse, "larger than 1048576"),
    (
        "gzip bomb",
        http(gzip.compress(bytes(100 * 2**20)), "Content-Encoding: gzip"),
        BadResponse,
        "larger than 1048576",
    ),
    (
        "bomb in 503",
        http(gzip.compress(bytes(9 * 2**20)), "Content-Encoding: gzip", status="503 Busy"),
        ExchangeNotAvailable,
        "HTTP 503",
    ),
]


@pytest.mark.parametrize(
    ("answer", "error", "words"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
def test_bodies(call: Caller, answer: bytes, error: type[BaseError], words: str) -> None:
    """A body without a balance raises the documented exception, never gives a balance."""
    with faulty_server(answering(answer)) as address, pytest.raises(error, match=words) as caught:
        call("htxfutures", config(address, timeout=10_000), "fetch_balance")
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
def test_compressed(call: Caller, encoding: str) -> None:
    """A compressed answer is read like any other."""
    body = gzip.compress(BODY) if encoding != "identity" else BODY
    with faulty_server(answering(http(body, f"Content-Encoding: {encoding}"))) as address:
        balance = call("sunx", config(address), "fetch_balance")
    assert balance["total"] == {"USDT": 0.004015101942876636}


def test_chunked(call: Caller) -> None:
    """A chunked body is put together."""
    chunks = b"".join(
        f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (BODY[:9], BODY[9:])
    )
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with faulty_server(answering(head + chunks + b"0\r\n\r\n")) as address:
        assert call("sunx", config(address), "fetch_total_balance")


def test_largest_body_is_a_setting(call: Caller) -> None:
    """The size limit of an answer can be set."""
    with faulty_server(answering(http(BODY))) as address:
        settings = config(address, options={"maxResponseBytes": 100})
        with pytest.raises(BadResponse, match="larger than 100"):
            call("sunx", settings, "fetch_balance")


def test_exceptions_of_custom_transports(call: Caller) -> None:
    """Exceptions of a custom httpx transport become the same ccxt exceptions."""

    def time_out(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)

    for handler, error in ((time_out, RequestTimeout), (fail, NetworkError)):
        options = {"transport": httpx.MockTransport(handler), "maxRetriesOnFailure": 0}
        with pytest.raises(error):
            call("sunx", {**KEYS, "options": options}, "fetch_balance")


def test_no_secret_is_shown(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """No exception, log record or traceback frame has the secret, key or signature."""
    echo = http(b"you sent AccessKeyId=" + KEYS["apiKey"].encode() + b"&Signature=abc%3D")
    caplog.set_level(0)
    for play in (resetting, silent, answering(echo), answering(http(b"{}", status="500 X"))):
        with faulty_server(play) as address, pytest.raises(BaseError) as caught:
            call("sunx", config(address), "fetch_balance")
        error = caught.value
        assert error.__context__ is None
        assert error.__cause__ is None
        inside = [entry for entry in caught.traceback if "sunx_adapter" in str(entry.path)]
        assert inside
        seen = str(error) + repr(error) + "".join(repr(entry.locals) for entry in inside)
        for hidden in (KEYS["secret"], KEYS["apiKey"], "Signature=a"):
            assert hidden not in seen
    for hidden in (KEYS["secret"], KEYS["apiKey"], "Signature="):
        assert hidden not in caplog.text
