"""The sandbox over real HTTP: what it serves, what it refuses, and a clean end."""

import base64
import contextlib
import dataclasses
import gc
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from sunx_adapter import Sunx
from sunx_adapter.protocol.signing import (
    Credentials,
    Ed25519Signer,
    HmacSigner,
    SignatureMethod,
    encode_query,
    signature_text,
    signed_query,
    timestamp_text,
)
from sunx_adapter.sandbox import (
    DEFAULT_ACCOUNTS,
    AccountRefusal,
    AccountsFileError,
    Holding,
    Sandbox,
    SandboxAccount,
    balance_data,
    dump_accounts,
    load_accounts,
)
from sunx_adapter.venue import VENUES
from tests.processes import PythonProcess, run_python

SAPI_BALANCE = "/sapi/v1/account/balance"
V5_BALANCE = "/v5/account/balance"
BALANCES = (SAPI_BALANCE, V5_BALANCE)
SIGNED_PATHS = (
    *BALANCES,
    "/sapi/v1/public/multi_assets_margin",
    "/v5/market/multi_assets_margin",
    "/v5/account/asset_mode",
)
PUBLIC_PATHS = ("/api/v1/timestamp", "/heartbeat/")
METHODS: tuple[SignatureMethod, ...] = ("HmacSHA256", "Ed25519")
NOW = 1759042264.737


class Clock:
    """A clock that changes only when the test moves it; seconds UTC."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds UTC."""
        return self.now

    @property
    def milliseconds(self) -> int:
        """Return the time in ms UTC."""
        return round(self.now * 1000)


class Reader:
    """Reads a sandbox over HTTP and signs for one of its accounts."""

    def __init__(self, sandbox: Sandbox, clock: Clock, client: httpx.Client) -> None:
        self.sandbox = sandbox
        self.clock = clock
        self.client = client

    def get(self, path: str, query: str = "", **headers: str) -> httpx.Response:
        """Send the query unchanged; return the answer."""
        return self.client.get(f"{self.sandbox.url}{path}?{query}", headers=headers)

    def query(
        self,
        path: str,
        account: str = "main",
        method: SignatureMethod = "HmacSHA256",
        *,
        host: str | None = None,
        seconds_off: float = 0,
        parameters: dict[str, object] | None = None,
    ) -> str:
        """Return a correctly signed query, except for what the arguments change."""
        chosen = self.sandbox.account(account)
        signer = (
            HmacSigner(chosen.secret or "")
            if method == "HmacSHA256"
            else Ed25519Signer(chosen.private_key or "")
        )
        return signed_query(
            Credentials(chosen.api_key, signer),
            host=host or urlsplit(self.sandbox.url).netloc,
            path=path,
            parameters=parameters or {},
            milliseconds=self.clock.milliseconds + round(seconds_off * 1000),
        )

    def read(self, path: str = SAPI_BALANCE, account: str = "main") -> httpx.Response:
        """Send a correctly signed request; return the answer."""
        return self.get(path, self.query(path, account))

    def fields(self, account: str = "main") -> dict[str, str]:
        """Return correct authentication parameters, decoded and without the signature."""
        return {
            "AccessKeyId": self.sandbox.account(account).api_key,
            "SignatureMethod": "HmacSHA256",
            "SignatureVersion": "2",
            "Timestamp": timestamp_text(self.clock.milliseconds),
        }

    def sign(self, path: str, query: str, account: str = "main") -> str:
        """Sign the query unchanged."""
        secret = self.sandbox.account(account).secret or ""
        text = signature_text("GET", urlsplit(self.sandbox.url).netloc, path, query)
        return f"{query}&Signature={quote(HmacSigner(secret).sign(text), safe='')}"

    def read_raw(self, path: str, query: str) -> Any:
        """Send the target without re-encoding; return the decoded JSON."""
        connection = http.client.HTTPConnection(urlsplit(self.sandbox.url).netloc)
        try:
            connection.request("GET", f"{path}?{query}")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@pytest.fixture
def clock() -> Clock:
    """The clock of a test's sandboxes and readers."""
    return Clock()


@pytest.fixture
def read_with(clock: Clock) -> Iterator[Callable[..., Reader]]:
    """A factory of readers for sandboxes with given accounts."""
    opened: list[Reader] = []

    def make(*accounts: SandboxAccount) -> Reader:
        sandbox = Sandbox(accounts or None, clock=clock).start()
        opened.append(Reader(sandbox, clock, httpx.Client(trust_env=False)))
        return opened[-1]

    yield make
    for reader in opened:
        reader.client.close()
        reader.sandbox.close()


@pytest.fixture
def reader(read_with: Callable[..., Reader]) -> Reader:
    """A reader of a sandbox with the default accounts."""
    return read_with()


def main_account(**changes: Any) -> SandboxAccount:
    """Return the first default account with these changes."""
    return dataclasses.replace(DEFAULT_ACCOUNTS[0], **changes)


# Served requests


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", SIGNED_PATHS)
def test_serves_signed_reads(reader: Reader, path: str, method: SignatureMethod) -> None:
    """Every signed endpoint accepts both signature methods."""
    answer = reader.get(path, reader.query(path, method=method))
    assert answer.status_code == 200
    assert answer.json()["code"] == 200


def test_serves_every_endpoint_of_every_venue(reader: Reader) -> None:
    """The sandbox serves every endpoint of every venue."""
    for endpoint in (endpoint for venue in VENUES.values() for endpoint in venue.endpoints):
        signed = endpoint.access == "private"
        query = reader.query(endpoint.path) if signed else ""
        assert reader.get(endpoint.path, query).status_code == 200, endpoint.path


def test_keeps_the_order_of_keys_of_each_variant(reader: Reader) -> None:
    """SunX sends the message before the data, HTX after it."""
    assert list(reader.read(SAPI_BALANCE).json()) == ["code", "message", "data", "ts"]
    assert list(reader.read(V5_BALANCE).json()) == ["code", "data", "message", "ts"]


def test_sends_the_balance_unchanged_in_v5(reader: Reader) -> None:
    """v5 sends an account's balance unchanged, with the undocumented row fields."""
    assert reader.read(V5_BALANCE).json()["data"] == reader.sandbox.account("main").balance


@pytest.mark.parametrize(("path", "extra"), [(SAPI_BALANCE, True), (V5_BALANCE, False)])
def test_leaves_out_undocumented_row_fields(
    read_with: Callable[..., Reader], path: str, extra: bool
) -> None:
    """SunX omits the undocumented row fields; v5 omits them if the account says so."""
    account = main_account(extra_row_fields=extra)
    rows = read_with(account).read(path).json()["data"]["details"]
    undocumented = {"available_margin", "isolated_equity", "isolated_profit_unreal"}
    expected = [
        {name: row[name] for name in row if name not in undocumented}
        for row in account.balance["details"]
    ]
    assert rows == expected


def test_sends_an_odd_balance_unchanged(read_with: Callable[..., Reader]) -> None:
    """A balance that no venue would send is sent unchanged, to test clients."""
    for odd in ({"state": "normal"}, {"details": None}, {"details": ["row"]}):
        answer = read_with(main_account(balance=odd)).read(SAPI_BALANCE)
        assert answer.json()["data"] == odd


def test_sends_the_time_of_its_clock(reader: Reader) -> None:
    """``ts`` and ``Date`` have the time of the sandbox's clock, ``ts`` as integer ms."""
    for path in (*SIGNED_PATHS, *PUBLIC_PATHS):
        answer = reader.get(path, reader.query(path) if path in SIGNED_PATHS else "")
        assert answer.json()["ts"] == 1759042264737
        assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == 1759042264


def test_public_endpoints_need_no_signature(reader: Reader) -> None:
    """Time and heartbeat need no signature, and have the older manual's shapes."""
    assert reader.get("/api/v1/timestamp").json() == {"status": "ok", "ts": 1759042264737}
    heartbeat = reader.get("/heartbeat/").json()
    assert heartbeat["status"] == "ok"
    assert heartbeat["data"]["linear_swap_heartbeat"] == 1


def test_sends_the_asset_mode(read_with: Callable[..., Reader]) -> None:
    """The collateral mode is the account's, multi-assets by default."""
    reader = read_with(main_account(), *DEFAULT_ACCOUNTS[1:])
    modes = [
        reader.read("/v5/account/asset_mode", name).json()["data"]
        for name in ("main", "single_asset")
    ]
    assert modes == [{"asset_mode": 1}, {"asset_mode": 0}]


@pytest.mark.parametrize("host", [venue.hostname for venue in VENUES.values()])
@pytest.mark.parametrize("method", METHODS)
def test_accepts_requests_through_a_gateway(
    reader: Reader, host: str, method: SignatureMethod
) -> None:
    """A request may be signed for a venue's own host, whatever host it is sent to."""
    query = reader.query(V5_BALANCE, method=method, host=host)
    assert reader.get(V5_BALANCE, query).json()["code"] == 200


def test_accepts_the_host_header(reader: Reader) -> None:
    """The signed host may be that of the Host header, in lower case and without port."""
    query = reader.query(V5_BALANCE, host="gateway.example")
    assert reader.get(V5_BALANCE, query).json()["code"] == 1003
    assert reader.get(V5_BALANCE, query, Host="Gateway.Example:8443").json()["code"] == 200


@pytest.mark.parametrize("path", BALANCES)
def test_verifies_parameters_that_need_encoding(reader: Reader, path: str) -> None:
    """Business parameters are part of the signed text, whatever their characters."""
    parameters: dict[str, object] = {"a b": "x:+/=~,é&", "empty": "", "Z": 1}
    query = reader.query(path, parameters=parameters)
    assert reader.get(path, query).json()["code"] == 200
    assert reader.get(path, query.replace("Z=1", "Z=2")).json()["code"] in {1003, 12008}


def test_order_of_sending_does_not_matter(reader: Reader) -> None:
    """The signed text is sorted by name; parameters may be sent in any order."""
    query = reader.query(V5_BALANCE)
    assert reader.get(V5_BALANCE, "&".join(reversed(query.split("&")))).json()["code"] == 200


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("br, *", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip;q=0, *", None),
        ("identity", None),
        ("", None),
    ],
)
def test_compresses_if_the_client_accepts_gzip(
    reader: Reader, accepted: str, encoding: str | None
) -> None:
    """An answer is gzip if and only if the client accepts that."""
    request = reader.client.build_request(
        "GET",
        f"{reader.sandbox.url}{V5_BALANCE}?{reader.query(V5_BALANCE)}",
        headers={"Accept-Encoding": accepted},
    )
    answer = reader.client.send(request, stream=True)
    raw = b"".join(answer.iter_raw())
    assert answer.headers.get("Content-Encoding") == encoding
    assert int(answer.headers["Content-Length"]) == len(raw)
    assert json.loads(gzip.decompress(raw) if encoding else raw)["code"] == 200


def test_keeps_connections_open(reader: Reader) -> None:
    """Successive requests use one connection."""
    address = urlsplit(reader.sandbox.url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port)
    sockets = set()
    for _ in range(3):
        connection.request("GET", "/heartbeat/")
        connection.getresponse().read()
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1


# Refused requests


@pytest.mark.parametrize("path", SIGNED_PATHS)
def test_refuses_unknown_keys(reader: Reader, path: str) -> None:
    """A missing or unknown key is refused in the venue's shape for that error."""
    for query in ("", "AccessKeyId=", "AccessKeyId=nobody", "AccessKeyId"):
        answer = reader.get(path, query)
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "error",
            "err_code": 403,
            "err_msg": "Incorrect Access key [Access key错误]",
            "ts": 1759042264737,
        }


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [(SAPI_BALANCE, 12008, "Verification failed"), (V5_BALANCE, 1003, "invalid signature")],
)
def test_checks_in_the_venues_order(reader: Reader, path: str, code: int, message: str) -> None:
    """Of several mistakes, the first in the venue's order of checks is reported."""
    right = reader.fields()
    fields: dict[str, str] = {"SignatureVersion": "1", "SignatureMethod": "HmacSHA1"}
    seen = []
    for name in ("AccessKeyId", "SignatureVersion", "SignatureMethod"):
        fields[name] = right[name]
        seen.append(reader.get(path, encode_query(fields)).json()["code"])
    fields["Timestamp"] = "yesterday"
    seen.append(reader.get(path, encode_query(fields)).json()["code"])
    fields["Timestamp"] = right["Timestamp"]
    last = reader.get(path, encode_query(fields))
    assert seen == [12002, 12003, 12006, 12001]
    assert (last.status_code, last.json()) == (200, {"code": code, "message": message})
    assert reader.get(path, reader.sign(path, encode_query(fields))).json()["code"] == 200


def test_refuses_methods_that_the_key_lacks(
    read_with: Callable[..., Reader],
) -> None:
    """A key with only a secret cannot sign with Ed25519, and vice versa."""
    both = main_account()
    reader = read_with(
        dataclasses.replace(both, name="hmac", api_key="hmac-key", private_key=None),
        dataclasses.replace(both, name="ed", api_key="ed-key", secret=None),
    )
    ed_query = encode_query(reader.fields("hmac") | {"SignatureMethod": "Ed25519"})
    assert reader.get(V5_BALANCE, ed_query).json()["code"] == 12003
    assert reader.get(V5_BALANCE, encode_query(reader.fields("ed"))).json()["code"] == 12003
    assert reader.get(V5_BALANCE, reader.query(V5_BALANCE, "hmac")).json()["code"] == 200
    query = reader.query(V5_BALANCE, "ed", "Ed25519")
    assert reader.get(V5_BALANCE, query).json()["code"] == 200


@pytest.mark.parametrize("path", BALANCES)
@pytest.mark.parametrize(
    ("seconds_off", "accepted"), [(-300, True), (300, True), (-301, False), (301, False)]
)
def test_allows_five_minutes(reader: Reader, path: str, seconds_off: float, accepted: bool) -> None:
    """A request's time may differ by at most five minutes from the sandbox's clock."""
    reader.clock.now = 1759042264.0
    code = reader.get(path, reader.query(path, seconds_off=seconds_off)).json()["code"]
    assert code == (200 if accepted else 12001)


@pytest.mark.parametrize(
    ("timestamp", "code"),
    [
        ("", 12006),
        ("2025-09-28", 12001),
        ("2025-09-28T06:51:04Z", 12001),
        ("2025-9-28T6:51:4", 12001),
        ("2025-13-28T06:51:04", 12001),
        ("1759042264", 12001),
    ],
)
def test_refuses_malformed_times(reader: Reader, timestamp: str, code: int) -> None:
    """Empty and malformed times are refused, each with its code, even if signed."""
    query = encode_query(reader.fields() | {"Timestamp": timestamp})
    assert reader.get(V5_BALANCE, reader.sign(V5_BALANCE, query)).json()["code"] == code


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("path", "code"), [(SAPI_BALANCE, 12008), (V5_BALANCE, 1003)])
def test_refuses_signatures_for_something_else(
    reader: Reader, path: str, code: int, method: SignatureMethod
) -> None:
    """A signature is valid for one host, path and account only, and must be complete."""
    other_path = V5_BALANCE if path == SAPI_BALANCE else SAPI_BALANCE
    own_key = reader.sandbox.account("main").api_key
    other_key = reader.sandbox.account("small").api_key
    right = reader.query(path, method=method)
    wrong = [
        reader.query(other_path, method=method),
        reader.query(path, method=method, host="api.example.com"),
        reader.query(path, "small", method).replace(other_key, own_key),
        right.partition("&Signature=")[0],
        right[:-12],
        f"{right}AAAA",
        f"{right}&extra=1",
        right.replace("Signature=", "Signature=%C3%A9"),
    ]
    assert [reader.get(path, query).json()["code"] for query in wrong] == [code] * len(wrong)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("b=x%3Ay%20%C3%A9", 200),
        ("b=x:y%20%C3%A9", 1003),
        ("b=x%3ay%20%c3%a9", 1003),
        ("b=x%3Ay+%C3%A9", 1003),
        ("b=x%3Ay%20%E9", 1003),
        ("b", 1003),
        ("b=1&b=2", 1003),
    ],
)
def test_requires_the_documented_encoding(reader: Reader, sent: str, code: int) -> None:
    """Parameters must be encoded by the rule, even if the client signed the same text."""
    query = f"{encode_query(reader.fields())}&{sent}"
    assert reader.read_raw(V5_BALANCE, reader.sign(V5_BALANCE, query))["code"] == code


def test_takes_plus_in_a_signature_for_a_space(reader: Reader) -> None:
    """A ``+`` in a signature that is not percent-encoded becomes a space, so it is refused."""
    for number in range(200):
        query = reader.query(V5_BALANCE, parameters={"n": number})
        if "%2B" in query:
            break
    broken = reader.read_raw(V5_BALANCE, query.replace("%2B", "+"))
    assert broken["code"] == 1003
    assert reader.read_raw(V5_BALANCE, query)["code"] == 200


@pytest.mark.parametrize(("account", "code"), [("locked", 12009), ("unopened", 4002)])
def test_refuses_by_account(reader: Reader, account: str, code: int) -> None:
    """A locked or unopened account is refused everywhere, in each variant's shape."""
    for path in SIGNED_PATHS:
        answer = reader.read(path, account)
        assert answer.status_code == 200
        message = reader.sandbox.account(account).refusal
        assert message is not None
        if path.startswith("/v5/"):
            expected: dict[str, object] = {
                "code": str(code),
                "msg": message.message,
                "data": None,
                "ts": "1759042264737",
            }
        else:
            expected = {"code": code, "message": message.message}
        assert answer.json() == expected


def test_refuses_single_asset_accounts_in_v5_only(reader: Reader) -> None:
    """Only v5 refuses single-asset accounts."""
    assert reader.read(V5_BALANCE, "single_asset").json()["code"] == "4002"
    assert reader.read(SAPI_BALANCE, "single_asset").json()["code"] == 200


def test_account_refusals_come_after_the_signature(reader: Reader) -> None:
    """A wrong signature is refused before anything about the account is revealed."""
    query = encode_query(reader.fields("locked"))
    assert reader.get(V5_BALANCE, query).json()["code"] == 1003


@pytest.mark.parametrize("path", ["/", "/v5/account/balance/", "/v5/account", "/heartbeat", "//"])
def test_unknown_paths_are_not_found(reader: Reader, path: str) -> None:
    """Any other path is a web server's 404 page, not JSON."""
    answer = reader.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "text/html"
    assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == 1759042264


@pytest.mark.parametrize("path", [*SIGNED_PATHS, *PUBLIC_PATHS])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_only_get_is_allowed(reader: Reader, path: str, method: str) -> None:
    """Another method on a known path is refused with 405."""
    answer = reader.client.request(method, reader.sandbox.url + path, content=b"{}" * 1000)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET"


def send_bytes(reader: Reader, request: bytes) -> bytes:
    """Send bytes that no HTTP client would send; return the answer."""
    address = urlsplit(reader.sandbox.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(request + b"Connection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.read()


def test_refuses_targets_that_are_not_ascii(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    """A target with bytes above ASCII is a bad request and is not logged."""
    target = V5_BALANCE.encode() + b"?Signature=\xff"
    answer = send_bytes(reader, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n")
    assert answer.split()[1] == b"400"
    assert not caplog.records


def test_refuses_targets_that_are_not_ascii_in_pure_python() -> None:
    """The same holds with aiohttp's parser in pure Python, which accepts such targets."""
    script = (
        "import socket\n"
        "from sunx_adapter.sandbox import Sandbox\n"
        "with Sandbox() as sandbox:\n"
        "    port = int(sandbox.url.rpartition(':')[2])\n"
        "    for target in (b'/\\xc3\\xa9', b'/heartbeat/?\\xff'):\n"
        "        with socket.create_connection(('127.0.0.1', port)) as connection:\n"
        "            connection.sendall(b'GET ' + target + b' HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "            print(connection.recv(12).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"},  # read when aiohttp is imported
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("HTTP/1.1 400\n" * 2, "")


def test_accepts_any_host_header(reader: Reader) -> None:
    """An invalid Host header does not matter if the signature is for a venue's host."""
    query = reader.query(V5_BALANCE, host="api.hbdm.com").encode()
    target = V5_BALANCE.encode() + b"?" + query
    answer = send_bytes(reader, b"GET " + target + b" HTTP/1.1\r\nHost: \xff\r\n")
    assert answer.split()[1] == b"200"
    assert b'"code":200' in answer


def test_logs_its_own_errors(caplog: pytest.LogCaptureFixture) -> None:
    """An error inside the sandbox is answered with 500 and logged, without the query."""

    def broken_clock() -> float:
        raise RuntimeError("the clock is broken")

    with Sandbox(clock=broken_clock) as sandbox, httpx.Client(trust_env=False) as client:
        assert client.get(f"{sandbox.url}{V5_BALANCE}?Signature=abc").status_code == 500
    assert "the clock is broken" in caplog.text
    assert "Signature" not in caplog.text


# The read limit


def test_refuses_the_73rd_read_of_3_seconds(reader: Reader) -> None:
    """72 reads in a moving window of 3 s are served; the next is refused with 429."""
    for number in range(72):
        reader.clock.now = NOW + number * 0.01
        assert reader.read(BALANCES[number % 2]).status_code == 200
    refused = reader.read()
    assert refused.status_code == 429
    assert refused.json() == {"code": 1032, "message": "The number of access exceeded limit"}
    assert refused.headers["ratelimit-remaining"] == "0"
    assert refused.headers["ratelimit-reset"] == "2290"
    reader.clock.now = NOW + 2.999
    assert reader.read().status_code == 429
    reader.clock.now = NOW + 3
    assert reader.read().status_code == 200
    assert reader.read().status_code == 429


def test_limit_in_headers(reader: Reader) -> None:
    """Signed answers have headers with limit, window in ms, remaining reads and reset."""
    names = ("limit", "interval", "remaining", "reset")
    reader.read()
    reader.clock.now += 1.25
    headers = reader.read().headers
    assert [headers[f"ratelimit-{name}"] for name in names] == ["72", "3000", "70", "1750"]
    assert "ratelimit-limit" not in reader.get("/heartbeat/").headers
    assert "ratelimit-limit" not in reader.get(V5_BALANCE).headers


def test_keys_of_one_user_share_the_limit(read_with: Callable[..., Reader]) -> None:
    """The limit is per UID: it includes the user's other keys, but not other users."""
    reader = read_with(
        *DEFAULT_ACCOUNTS, main_account(name="second key", api_key="another-key-of-main")
    )
    for _ in range(72):
        assert reader.read().status_code == 200
    assert reader.read(V5_BALANCE, "second key").status_code == 429
    assert reader.read(V5_BALANCE, "small").status_code == 200


def test_only_served_reads_count(reader: Reader) -> None:
    """Refused and public requests do not count for the limit."""
    for _ in range(80):
        reader.get(V5_BALANCE, encode_query(reader.fields()))
        reader.get("/api/v1/timestamp")
        assert reader.read(V5_BALANCE, "locked").json()["code"] == "12009"
    assert reader.read().headers["ratelimit-remaining"] == "71"


# Accounts


def test_default_accounts_differ() -> None:
    """Default accounts differ in name, key and user; each key can sign by both methods."""
    assert [account.name for account in DEFAULT_ACCOUNTS] == [
        *("main", "small", "indebted", "empty", "liquidating"),
        *("adl", "open_limit", "locked", "unopened", "single_asset"),
    ]
    for attribute in ("name", "api_key", "uid", "secret", "private_key"):
        assert len({getattr(account, attribute) for account in DEFAULT_ACCOUNTS}) == 10
    assert all(account.signature_methods == METHODS for account in DEFAULT_ACCOUNTS)


@pytest.mark.parametrize("account", DEFAULT_ACCOUNTS, ids=lambda account: account.name)
def test_default_balances_are_consistent(account: SandboxAccount) -> None:
    """Equity is cash plus unrealised PnL; free margin is equity less initial margin."""
    balance = account.balance
    for row in (balance, *balance["details"]):
        equity, initial = Decimal(row["equity"]), Decimal(row["initial_margin"])
        assert Decimal(row["available_margin"]) == equity - initial
    for row in balance["details"]:
        cash, profit = Decimal(row["available"]), Decimal(row["profit_unreal"])
        assert Decimal(row["equity"]) == cash + profit
        assert 0 <= Decimal(row["withdraw_available"]) <= max(cash, Decimal(0))


def test_reproduces_the_documented_examples(reader: Reader) -> None:
    """The sandbox computes the figures that the venues document."""
    htx = reader.read(V5_BALANCE, "indebted").json()["data"]
    assert (htx["equity"], htx["available_margin"]) == ("74999.9030801324", "74997.0030803324")
    assert htx["maintenance_margin_rate"] == "0.000000725000886893"
    assert htx["profit_unreal"] == "-0.091875"
    usdt, btc = htx["details"]
    assert usdt["equity"] == "-0.0969198676"
    assert usdt["initial_margin_rate"] == "-29.921623623844075494"
    assert usdt["maintenance_margin_rate"] == "-0.561030442947076415"
    assert (btc["equity"], btc["available"], btc["initial_margin_rate"]) == ("1", "1", "0")
    sunx = reader.read(SAPI_BALANCE, "small").json()["data"]
    assert sunx["equity"] == sunx["details"][0]["equity"] == "0.004015101942876636"


def test_states_by_name_and_number(reader: Reader) -> None:
    """The accounts cover every state; only a normal one allows transfers out."""
    states = {}
    for name in ("main", "liquidating", "adl", "open_limit"):
        data = reader.read(V5_BALANCE, name).json()["data"]
        states[name] = data["state"]
        moving = any(row["withdraw_available"] != "0" for row in data["details"])
        assert moving == (name == "main")
    assert list(states.values()) == ["normal", "liquidating", "5", "open_limit"]


def test_an_empty_account_has_no_rows(reader: Reader) -> None:
    """``empty`` sends an empty list of rows."""
    assert reader.read(V5_BALANCE, "empty").json()["data"]["details"] == []


def test_makes_consistent_balances() -> None:
    """A balance is computed from cash, PnL and margins; amounts are plain text."""
    balance = balance_data(
        [Holding("USDT", "1E+3", "-0.000000000000000001", "10"), Holding("BTC", "0", price="9")]
    )
    usdt, btc = balance["details"]
    assert usdt["equity"] == "999.999999999999999999"
    assert usdt["available"] == "1000"
    assert balance["available_margin"] == "989.999999999999999999"
    assert (btc["equity"], btc["initial_margin_rate"]) == ("0", "0")


def test_no_repr_shows_a_secret(reader: Reader) -> None:
    """No repr of an account or sandbox shows a secret, private key or full API key."""
    account = reader.sandbox.account("main")
    shown = f"{account!r} {reader.sandbox!r} {reader.sandbox.accounts!r}"
    for secret in (account.secret, account.private_key, account.api_key):
        assert secret is not None
        assert secret not in shown
    assert "main" in repr(reader.sandbox)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": ""}, "name: must not be empty"),
        ({"secret": None, "private_key": None}, "secret: a key needs"),
        ({"private_key": "AAAA"}, "private_key: must be Base64"),
        ({"private_key": "no Base64!"}, "private_key: must be Base64"),
        ({"asset_mode": 7}, "asset_mode: must be 0, 1 or 2"),
    ],
)
def test_refuses_invalid_accounts(changes: dict[str, Any], text: str) -> None:
    """An invalid account is refused when it is made; the error says why."""
    with pytest.raises(ValueError, match=text):
        main_account(**changes)


@pytest.mark.parametrize(
    ("accounts", "text"),
    [
        ([], "at least one account"),
        ([main_account(), main_account(api_key="other")], "name 'main'"),
        ([main_account(), main_account(name="other")], "main, other share an api_key"),
    ],
)
def test_refuses_duplicate_accounts(accounts: list[SandboxAccount], text: str) -> None:
    """A sandbox needs at least one account, and accounts with different names and keys."""
    with pytest.raises(ValueError, match=text):
        Sandbox(accounts)


def test_serves_ten_thousand_accounts() -> None:
    """A number of accounts can be generated, each with a separate key, user and balance."""
    with Sandbox(10_000) as sandbox:
        configs = sandbox.configs("sunx")
        assert list(configs)[::9999] == ["account-1", "account-10000"]
        assert configs["account-7"] == sandbox.config("sunx", "account-7")
        for attribute in ("apiKey", "secret", "uid"):
            assert len({config[attribute] for config in configs.values()}) == 10_000
        for number in (1, 5000, 10_000):
            with Sunx({**configs[f"account-{number}"], "number": str}) as exchange:
                assert exchange.fetch_balance()["USDT"]["total"] == f"{1012 + number}.5"
        with pytest.raises(ValueError, match=r"account-20 and 9980 more") as caught:
            sandbox.account("nobody")
        assert len(str(caught.value)) < 1000
        assert len(repr(sandbox)) < 1000


# Accounts from a file


def write(tmp_path: Path, text: str) -> Path:
    """Write an accounts file with this text."""
    path = tmp_path / "accounts.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_accounts_survive_a_file(tmp_path: Path) -> None:
    """Accounts that are dumped and loaded are the same, with the order of keys."""
    loaded = load_accounts(write(tmp_path, dump_accounts()))
    assert loaded == list(DEFAULT_ACCOUNTS)
    assert dump_accounts(loaded) == dump_accounts()


def test_serves_accounts_from_a_file(tmp_path: Path, read_with: Callable[..., Reader]) -> None:
    """An account needs a name, a uid, a key and a secret; everything else has a default."""
    minimal = {"name": "mine", "uid": "7", "api_key": "my-key", "secret": "my-secret"}
    path = write(tmp_path, json.dumps({"accounts": [minimal]}))
    reader = read_with(*load_accounts(path))
    assert reader.read(V5_BALANCE, "mine").json()["data"]["details"] == []


def test_a_file_may_have_further_balance_fields(tmp_path: Path) -> None:
    """A balance is used unchanged; unknown fields in it are sent too."""
    document = json.loads(dump_accounts(DEFAULT_ACCOUNTS[:1]))
    document["accounts"][0]["balance"]["version"] = 7
    document["accounts"][0]["balance"]["details"][0]["new"] = "x"
    balance = load_accounts(write(tmp_path, json.dumps(document)))[0].balance
    assert balance == document["accounts"][0]["balance"]


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        (lambda d: d.pop("accounts"), "the whole file", "missing required field `accounts`"),
        (lambda d: d.update(accounts={}), "accounts", "Expected `array`, got `object`"),
        (lambda d: d["accounts"].clear(), "accounts", "at least one account"),
        (lambda d: d["accounts"][1].pop("uid"), "accounts[1]", "missing required field `uid`"),
        (lambda d: d["accounts"][1].update(uid=7), "accounts[1].uid", "Expected `str`"),
        (lambda d: d["accounts"][1].update(apiKey="x"), "accounts[1]", "unknown field `apiKey`"),
        (lambda d: d["accounts"][1].update(name="main"), "accounts", "the name 'main'"),
        (
            lambda d: d["accounts"][1].update(private_key="x"),
            "accounts[1].private_key",
            "must be Base64",
        ),
        (lambda d: d["accounts"][1].update(asset_mode=5), "accounts[1].asset_mode", "enum value 5"),
        (lambda d: d["accounts"][1].update(refusal={"code": 1}), "accounts[1].refusal", "message"),
        (
            lambda d: d["accounts"][0]["balance"].pop("equity"),
            "accounts[0].balance",
            "missing required field `equity`",
        ),
        (
            lambda d: d["accounts"][0]["balance"]["details"][1].update(equity=0.1),
            "accounts[0].balance.details[1].equity",
            "Expected `str`, got `float`",
        ),
        (
            lambda d: d["accounts"][0]["balance"]["details"][1].update(available="1e5"),
            "accounts[0].balance.details[1].available",
            "must be decimal text of up to 18 places",
        ),
        (
            lambda d: d["accounts"][0]["balance"]["details"][1].update(currency=""),
            "accounts[0].balance.details[1].currency",
            "length >= 1",
        ),
    ],
)
def test_names_what_is_wrong_in_a_file(
    tmp_path: Path, change: Change, place: str, text: str
) -> None:
    """An error names the file and the place, says what is wrong, and quotes no secret."""
    document = json.loads(dump_accounts(DEFAULT_ACCOUNTS[:2]))
    change(document)
    path = write(tmp_path, json.dumps(document))
    with pytest.raises(AccountsFileError) as caught:
        load_accounts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {place}: ")
    assert text in message
    assert "sandbox-main-secret" not in message
    assert caught.value.__context__ is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1,]", b"\xff\xfe\xff", b"[" * 200_000])
def test_names_files_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    """A file that is not JSON is named in the error."""
    path = tmp_path / "accounts.json"
    path.write_bytes(content)
    with pytest.raises(AccountsFileError, match="not valid JSON") as caught:
        load_accounts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """A missing file raises the operating system's own error."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_accounts(tmp_path / "nowhere.json")


# The configuration for an exchange


def test_config_is_ready_for_an_exchange(reader: Reader) -> None:
    """A config has the key, its secret or private key, the user and the addresses."""
    urls = {"api": {"rest": reader.sandbox.url, "stream": reader.sandbox.stream_url}}
    main = reader.sandbox.account("main")
    assert reader.sandbox.config("sunx") == {
        "apiKey": main.api_key,
        "secret": main.secret,
        "uid": main.uid,
        "urls": urls,
    }
    small = reader.sandbox.account("small")
    assert reader.sandbox.config("htxfutures", "small", signature_method="Ed25519") == {
        "apiKey": small.api_key,
        "privateKey": small.private_key,
        "uid": small.uid,
        "urls": urls,
    }


def test_config_without_a_secret(read_with: Callable[..., Reader]) -> None:
    """By default, a key without a secret signs with Ed25519."""
    sandbox = read_with(main_account(secret=None)).sandbox
    assert "privateKey" in sandbox.config("sunx")
    with pytest.raises(ValueError, match="not enabled for 'HmacSHA256', but for: Ed25519"):
        sandbox.config("sunx", signature_method="HmacSHA256")


def test_config_lists_the_known_names(reader: Reader) -> None:
    """An unknown venue or account is an error that lists the known ones."""
    with pytest.raises(ValueError, match="no venue 'binance'; the venues are: sunx, htxfutures"):
        reader.sandbox.config("binance")
    with pytest.raises(ValueError, match="no account 'nobody'; it has: main, small, indebted"):
        reader.sandbox.config("sunx", account="nobody")


# The log


def test_logs_requests_without_secrets(reader: Reader) -> None:
    """Each request is recorded with time, path, user and result, but without its query."""
    reader.read(V5_BALANCE, "small")
    reader.clock.now += 60
    reader.get(SAPI_BALANCE, "AccessKeyId=nobody&Signature=abc")
    reader.get("/heartbeat/")
    reader.client.post(f"{reader.sandbox.url}/nowhere?Signature=abc")
    log = reader.sandbox.requests
    assert [(r.method, r.path, r.uid, r.status, r.code) for r in log] == [
        ("GET", V5_BALANCE, "100000002", 200, 200),
        ("GET", SAPI_BALANCE, None, 200, 403),
        ("GET", "/heartbeat/", None, 200, "ok"),
        ("POST", "/nowhere", None, 404, 404),
    ]
    assert [request.time for request in log] == [NOW, *[NOW + 60] * 3]
    assert [r.monotonic for r in log] == sorted(r.monotonic for r in log)
    assert "Signature" not in repr(log)
    assert reader.sandbox.request_count == 4


def test_logs_through_logging(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    """Each request is logged at INFO with its fault, but no key, signature or secret."""
    caplog.set_level("DEBUG", logger="sunx_adapter.sandbox")
    reader.read(V5_BALANCE, "small")
    reader.sandbox.schedule(["code=1004"])
    reader.read(SAPI_BALANCE, "main")
    lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert {record.name for record in caplog.records} >= {"sunx_adapter.sandbox"}
    assert lines[:2] == [
        f"GET {V5_BALANCE}: status 200, code 200, uid 100000002",
        f"GET {SAPI_BALANCE}: status 200, code 1004, uid 100000001 (fault: code=1004)",
    ]
    main = reader.sandbox.account("main")
    for secret in (main.api_key, main.secret, main.private_key, "Signature"):
        assert secret is not None
        assert secret not in "".join(lines)


def test_the_log_is_bounded() -> None:
    """Only the latest requests are kept, but all are counted."""
    with Sandbox(kept_requests=3) as sandbox, httpx.Client(trust_env=False) as client:
        for number in range(5):
            client.get(f"{sandbox.url}/{number}{'x' * 1000}")
        assert [request.path[:2] for request in sandbox.requests] == ["/2", "/3", "/4"]
        assert max(len(request.path) for request in sandbox.requests) <= 256
        assert sandbox.request_count == 5


# Starting and ending


def sandbox_threads() -> list[threading.Thread]:
    """Return the threads of running sandboxes."""
    return [thread for thread in threading.enumerate() if "sandbox" in thread.name]


def test_serves_many_threads_at_once(reader: Reader) -> None:
    """Concurrent requests from several threads each get their account's balance."""
    names = ["main", "small", "indebted", "empty"] * 16
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: reader.read(V5_BALANCE, name).json(), names))
    for name, answer in zip(names, answers, strict=True):
        assert answer["data"] == reader.sandbox.account(name).balance
    assert reader.sandbox.request_count == 64


def test_several_sandboxes_run_at_once() -> None:
    """Sandboxes have separate ports, accounts and limits."""
    with Sandbox() as first, Sandbox([main_account(name="other")]) as second:
        assert first.url != second.url
        assert len(sandbox_threads()) == 2
        with httpx.Client(trust_env=False) as client:
            for sandbox in (first, second, first):
                client.get(f"{sandbox.url}/heartbeat/")
        assert (first.request_count, second.request_count) == (2, 1)


def test_ends_with_open_connections() -> None:
    """``close()`` ends idle and half-finished connections, and leaves no thread or port."""
    sandbox = Sandbox().start()
    address = urlsplit(sandbox.url)
    assert address.hostname is not None
    assert address.port is not None
    client = httpx.Client(trust_env=False)
    assert client.get(f"{sandbox.url}/heartbeat/").status_code == 200
    silent = socket.create_connection((address.hostname, address.port))
    half = socket.create_connection((address.hostname, address.port))
    half.sendall(b"GET /heartbeat/ HTTP/1.1\r\nHo")
    # Connections are accepted in order, so both are accepted before this answer.
    assert httpx.get(f"{sandbox.url}/heartbeat/", trust_env=False).status_code == 200
    sandbox.close()
    assert not sandbox_threads()
    for connection in (silent, half):
        connection.settimeout(10)
        # Some systems end a connection with unread bytes by a reset.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()
    with pytest.raises(httpx.ConnectError):
        client.get(f"{sandbox.url}/heartbeat/")
    client.close()
    gc.collect()  # anything left open would warn here


def test_ends_although_a_client_does_not_read() -> None:
    """A client that sends requests and reads nothing does not keep a connection open."""
    sandbox = Sandbox().start()
    address = urlsplit(sandbox.url)
    request = b"GET /heartbeat/ HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                connection.sendall(request)
        sandbox.close()
    assert not sandbox_threads()
    gc.collect()  # anything left open would warn here


def test_repeated_start_and_close() -> None:
    """``start()`` and ``close()`` may be repeated, in several threads; then it can start again."""
    sandbox = Sandbox()
    sandbox.close()
    assert sandbox.start() is sandbox.start()
    url = sandbox.url
    assert len(sandbox_threads()) == 1
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(sandbox.close)
    assert not sandbox_threads()
    assert sandbox.url == url
    assert "not running" in repr(sandbox)
    with sandbox:
        answer = httpx.get(f"{sandbox.url}/heartbeat/", trust_env=False)
        assert answer.status_code == 200


def test_needs_to_be_started() -> None:
    """Before ``start()`` there is no address; the error says what to do."""
    sandbox = Sandbox()
    for use in (lambda: sandbox.url, lambda: sandbox.config("sunx"), sandbox.wait):
        with pytest.raises(RuntimeError, match="never started"):
            use()


def test_a_port_in_use_is_named() -> None:
    """A port in use is an error that names it and leaves nothing open."""
    with Sandbox() as sandbox:
        port = urlsplit(sandbox.url).port
        assert port is not None
        second = Sandbox(port=port)
        with pytest.raises(
            OSError, match=f"cannot listen on 127.0.0.1 port {port}.*choose another"
        ):
            second.start()
        assert len(sandbox_threads()) == 1
    # The port is free again at once, although it just had open connections.
    with Sandbox(port=port) as third:
        assert urlsplit(third.url).port == port


def test_listens_on_ipv6() -> None:
    """An IPv6 address is served and signed like any other host."""
    clock = Clock()
    sandbox = Sandbox(host="::1", clock=clock)
    try:
        sandbox.start()
    except OSError:
        pytest.skip("no IPv6 here")
    with sandbox, httpx.Client(trust_env=False) as client:
        assert sandbox.url.startswith("http://[::1]:")
        assert Reader(sandbox, clock, client).read().json()["code"] == 200


_FORK = """
import os, signal, sys
from sunx_adapter import Sandbox

with Sandbox() as sandbox:
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sandbox.url
"""


def test_fork_of_a_process_with_a_sandbox() -> None:
    """The child of a fork exits, although its parent's sandbox is not closed."""
    ended = run_python("-c", _FORK)
    assert ended.returncode == 0, ended.stderr


def test_connections_made_while_it_closes() -> None:
    """``close()`` leaves no connection open, not even one made at the same moment."""

    def connect(address: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            for _ in range(200):
                socket.create_connection(address).close()

    for _ in range(30):
        sandbox = Sandbox().start()
        where = urlsplit(sandbox.url)
        with ThreadPoolExecutor(2) as clients:
            for _ in range(2):
                clients.submit(connect, (where.hostname or "", where.port or 0))
            sandbox.close()
    gc.collect()  # a ResourceWarning would fail the test


def test_waits_until_closed() -> None:
    """``wait()`` returns when another thread closes the sandbox."""
    sandbox = Sandbox().start()
    waiting = threading.Thread(target=sandbox.wait)
    waiting.start()
    sandbox.close()
    waiting.join(10)
    assert not waiting.is_alive()


def run_script(script: str) -> PythonProcess:
    """Run a script in a process, with every warning as an error."""
    return PythonProcess("-W", "error", "-c", script, stdout=PIPE, stderr=PIPE)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ends_on_ctrl_c() -> None:
    """Ctrl-C raises KeyboardInterrupt from ``wait()``; leaving the block then ends quietly."""
    process = run_script(
        "from sunx_adapter.sandbox import Sandbox\n"
        "try:\n"
        "    with Sandbox() as sandbox:\n"
        "        print(sandbox.url, flush=True)\n"
        "        sandbox.wait()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}/heartbeat/").status_code == 200
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "interrupted\n", "")


def test_an_unclosed_sandbox_does_not_hold_the_interpreter() -> None:
    """A program that never closes its sandbox still ends."""
    process = run_script(
        "import atexit, threading\n"
        "from sunx_adapter.sandbox import Sandbox\n"
        "atexit.register(lambda: print(threading.active_count()))\n"
        "Sandbox().start()\n"
    )
    with process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "1\n", "")


def test_ed25519_keys_are_raw_base64() -> None:
    """The default private keys are Base64 of 32 bytes that are clearly made up."""
    for account in DEFAULT_ACCOUNTS:
        assert account.private_key is not None
        raw = base64.b64decode(account.private_key)
        assert len(raw) == 32
        assert raw.startswith(f"sandbox-{account.name}-key".encode())


def test_refusals_are_data() -> None:
    """An account can answer with any code of the venues' error lists."""
    account = main_account(refusal=AccountRefusal(1077, "settlement"))
    with Sandbox([account]) as sandbox, httpx.Client(trust_env=False) as client:
        reader = Reader(sandbox, clock := Clock(), client)
        assert reader.read().json()["code"] == 12001  # this sandbox uses the real clock
        assert clock.now == NOW
    clock = Clock()
    with Sandbox([account], clock=clock) as sandbox, httpx.Client(trust_env=False) as client:
        assert Reader(sandbox, clock, client).read().json() == {
            "code": 1077,
            "message": "settlement",
        }
