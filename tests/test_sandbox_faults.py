"""The sandbox's faults: each kind on the wire, when it is played, and a clean end."""

import contextlib
import copy
import gc
import gzip
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import ccxt
import httpx
import pytest

from sunx_adapter import HtxFutures, Sandbox, Sunx
from sunx_adapter.protocol.errors import ERROR_RULES
from sunx_adapter.sandbox import Fault, FaultError, fault_kinds, parse_fault
from sunx_adapter.sandbox.faults import FaultPlan
from tests.conftest import Caller
from tests.test_sandbox import (
    BALANCES,
    NOW,
    PUBLIC_PATHS,
    SAPI_BALANCE,
    SIGNED_PATHS,
    V5_BALANCE,
    Clock,
    Reader,
    sandbox_threads,
)

MIB = 2**20
MS = round(NOW * 1000)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A reader of a sandbox without faults."""
    clock = Clock()
    with Sandbox(clock=clock) as sandbox, httpx.Client(trust_env=False) as client:
        yield Reader(sandbox, clock, client)


def kind_of(fault: Fault | None) -> str | None:
    """Return the kind of a fault, or ``None`` without one."""
    return fault.kind if fault else None


def played(reader: Reader) -> list[str | None]:
    """Return the kinds of faults of all requests so far."""
    return [kind_of(request.fault) for request in reader.sandbox.requests]


def request_bytes(reader: Reader, path: str = SAPI_BALANCE, accepted: str = "identity") -> bytes:
    """Return a correctly signed request."""
    lines = [
        f"GET {path}?{reader.query(path)} HTTP/1.1",
        f"Host: {urlsplit(reader.sandbox.url).netloc}",
        f"Accept-Encoding: {accepted}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(reader: Reader) -> socket.socket:
    """Open a connection whose reads time out after 10 s."""
    address = urlsplit(reader.sandbox.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fail after 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


def receive_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    with connection.makefile("rb") as stream:
        return stream.read()


def split(text: bytes) -> tuple[dict[str, str], bytes]:
    """Return headers (names in lower case) and body of an HTTP answer."""
    head, _, body = text.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body


# Grammar


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("reset", Fault("reset")),
        ("reset@0.2", Fault("reset", probability=0.2)),
        ("silence@1", Fault("silence", probability=1)),
        ("code=1004", Fault("code", "1004")),
        ("code=gateway-internal-error@0", Fault("code", "gateway-internal-error", 0)),
        ("clock=-7200@0.5", Fault("clock", -7200, 0.5)),
        ("missing=data.details[0].equity", Fault("missing", "data.details[0].equity")),
        ("html=503", Fault("html", 503)),
        ("redirect=http://a@b/?c=d@1", Fault("redirect", "http://a@b/?c=d", 1)),
    ],
)
def test_parses_faults(text: str, fault: Fault) -> None:
    """``KIND[=PARAMETER][@PROBABILITY]`` is parsed, and ``str()`` of a fault parses the same."""
    assert parse_fault(text) == fault
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rest", r"unknown fault 'rest'; the faults are: ok, refuse, reset, silence"),
        ("", "unknown fault ''; the faults are"),
        ("Reset", "unknown fault 'Reset'"),
        ("code:1003", r"did you mean code=1003\?"),
        ("reset@0.1@0.2", "unknown fault 'reset@0.1@0.2'"),
        ("reset@2", "reset: the probability must be a number from 0 to 1"),
        ("reset@-0.1", "probability"),
        ("reset@often", "probability"),
        ("reset@nan", "probability"),
        ("reset@", "probability"),
        ("reset=1", "reset=1: reset has no parameter"),
        ("refuse=1", "refuse=1: refuse has no parameter"),
        ("code", "code=CODE: CODE must be an error code"),
        ("code=200", "error code other than 200"),
        ("code=no way", "must be an error code"),
        ("status", "an HTTP status from 200 to 599"),
        ("html=99", "html=99: STATUS must be an HTTP status from 200 to 599"),
        ("slow=soon", "a number of seconds from 0"),
        ("slow=-1", "a number of seconds from 0"),
        ("drip=inf", "a number of seconds from 0"),
        ("clock=", "a number of seconds from -"),
        ("bomb=0", "a whole number of MiB from 1"),
        ("bomb=1.5", "a whole number of MiB from 1"),
        ("redirect=elsewhere", "begins with http:// or https://"),
        ("redirect=http://a\r\nb", "begins with http:// or https://"),
        ("missing=data..equity", "a field of the answer, like data"),
        ("missing=[0]", "a field of the answer, like data"),
    ],
)
def test_invalid_faults(text: str, words: str) -> None:
    """An invalid fault is refused; the error lists the valid ones or the valid values."""
    with pytest.raises(FaultError, match=words):
        parse_fault(text)


def test_refuses_invalid_paths() -> None:
    """A fault's path must start with a slash, or be ``*``."""
    with pytest.raises(FaultError, match="must begin with /"):
        Fault("reset", path="heartbeat")


def test_describes_all_kinds() -> None:
    """Each kind has a usage and one sentence without a full stop."""
    rules = fault_kinds()
    assert len({rule.kind for rule in rules}) == len(rules) == 26
    for rule in rules:
        assert re.fullmatch(rf"{rule.kind}(=[A-Z]+|\[=[A-Z]+\])?", rule.usage)
        assert rule.help == rule.help.strip(". ")
        required = rule.parameter is not None and rule.default is None
        assert ("=" in rule.usage and "[" not in rule.usage) == required


@pytest.mark.parametrize(
    ("faults", "valid"),
    [
        (["reset@0.5", "silence@0.5"], True),
        ([f"code={code}@0.1" for code in range(1000, 1010)], True),
        (["reset@0.6", "silence@0.6"], False),
        (["reset@0.6", Fault("silence", probability=0.6, path="/heartbeat/")], True),
        (["reset@0.6", Fault("silence", probability=0.6, path="*")], False),
        (["reset@0.6", "maintenance@0.6"], False),
    ],
)
def test_probabilities_add_up(faults: list[Fault | str], valid: bool) -> None:
    """The probabilities of one path's faults add up to at most 1."""
    expected = contextlib.nullcontext() if valid else pytest.raises(FaultError, match=r"add up to")
    with expected:
        Sandbox(faults=faults)


# When a fault is played


def draws(plan: FaultPlan, count: int, path: str = V5_BALANCE) -> list[str | None]:
    """Return the kinds that ``count`` requests get."""
    return [
        kind_of((draw := plan.draw(path)).fault or next(iter(draw.clocks), None))
        for _ in range(count)
    ]


def test_the_seed_determines_the_draws() -> None:
    """The same seed gives the same faults; another seed gives others."""
    faults = ["reset@0.2", "silence@0.1", "html@0.3"]
    first = draws(FaultPlan(faults, seed=1), 200)
    plan = FaultPlan(faults, seed=1)
    assert draws(plan, 200) == first
    assert draws(FaultPlan(faults, seed=2), 200) != first
    plan.set_faults(faults, seed=1)
    assert draws(plan, 200) == first


def test_probabilities() -> None:
    """Each fault gets its share of the requests; the others succeed."""
    counts = Counter(draws(FaultPlan(["reset@0.2", "silence@0.05", "ok@0.1"], seed=3), 10_000))
    assert counts["reset"] == pytest.approx(2000, rel=0.1)
    assert counts["silence"] == pytest.approx(500, rel=0.2)
    assert counts[None] == 10_000 - counts["reset"] - counts["silence"]


def test_faults_without_a_probability_share_the_rest() -> None:
    """Faults without a probability share the remaining requests evenly."""
    assert set(draws(FaultPlan(["reset"]), 1000)) == {"reset"}
    assert set(draws(FaultPlan(["reset@0"]), 1000)) == {None}
    counts = Counter(draws(FaultPlan(["cut@0.5", "reset", "html"], seed=4), 10_000))
    assert None not in counts
    assert counts["cut"] == pytest.approx(5000, rel=0.1)
    assert counts["reset"] == pytest.approx(2500, rel=0.1)


def test_paths_of_faults() -> None:
    """Faults apply to balances; maintenance and clock to all paths; or to a given path."""
    plan = FaultPlan(["reset"])
    for path in (*SIGNED_PATHS, *PUBLIC_PATHS, "/nowhere"):
        assert draws(plan, 1, path) == ["reset" if path in BALANCES else None]
    for path in (*SIGNED_PATHS, *PUBLIC_PATHS, "/nowhere"):
        assert draws(FaultPlan(["maintenance"]), 1, path) == ["maintenance"]
        assert draws(FaultPlan([Fault("cut", path="*")]), 1, path) == ["cut"]
    plan = FaultPlan([Fault("cut", path="/heartbeat/")])
    assert draws(plan, 1, "/heartbeat/") == ["cut"]
    assert draws(plan, 1, V5_BALANCE) == [None]


def test_other_paths_do_not_disturb_the_draws() -> None:
    """Requests without a possible fault do not advance the random generator."""
    plan = FaultPlan(["reset@0.5"], seed=5)
    mixed = []
    for _ in range(100):
        plan.draw("/api/v1/timestamp")
        mixed += draws(plan, 1)
    assert mixed == draws(FaultPlan(["reset@0.5"], seed=5), 100)


def test_a_schedule_goes_first() -> None:
    """Each request takes one step of the schedule; then the other faults apply again."""
    plan = FaultPlan(["html"])
    plan.schedule(["reset", "ok", Fault("code", "1004")])
    plan.schedule(["silence"])
    assert [str(step) for step in plan.scheduled] == ["reset", "ok", "code=1004", "silence"]
    assert draws(plan, 6) == ["reset", None, "code", "silence", "html", "html"]
    assert plan.scheduled == ()


def test_steps_wait_for_their_path() -> None:
    """A request takes the first step for its path and leaves the others."""
    plan = FaultPlan()
    plan.schedule(["cut", Fault("reset", path="/heartbeat/"), "html"])
    assert draws(plan, 1, "/api/v1/timestamp") == [None]
    assert draws(plan, 2, "/heartbeat/") == ["reset", None]
    assert draws(plan, 3) == ["cut", "html", None]


def test_steps_have_no_probability() -> None:
    """A step with a probability is refused, and nothing is added."""
    plan = FaultPlan()
    with pytest.raises(FaultError, match=r"reset@0.5: a scheduled step cannot have a probability"):
        plan.schedule(["cut", "reset@0.5"])
    assert plan.scheduled == ()


def test_a_single_fault() -> None:
    """A single text counts as one fault."""
    plan = FaultPlan("reset")
    plan.schedule("cut")
    assert draws(plan, 2) == ["cut", "reset"]


def test_a_wrong_clock_goes_with_other_faults() -> None:
    """A clock fault without a probability always applies; several add up."""
    plan = FaultPlan(["clock=600", "clock=-60", "reset@0.5"], seed=6)
    got = [plan.draw(V5_BALANCE) for _ in range(100)]
    assert {draw.clock_seconds for draw in got} == {540}
    assert {kind_of(draw.fault) for draw in got} == {None, "reset"}
    assert {kind_of(next(iter(draw.clocks), None)) for draw in got} == {"clock"}
    assert plan.draw("/api/v1/timestamp").clock_seconds == 540


def test_a_clock_may_jump() -> None:
    """A clock fault with a probability applies to the requests that draw it."""
    plan = FaultPlan(["clock=60", "clock=600@0.5"], seed=7)
    assert {plan.draw(V5_BALANCE).clock_seconds for _ in range(100)} == {60, 660}


def test_plans_are_thread_safe() -> None:
    """Threads may draw, schedule and replace concurrently; each step is played once."""
    plan = FaultPlan(seed=8)

    def work(number: int) -> list[str | None]:
        plan.schedule([Fault("code", 1000 + number)] * 50)
        plan.set_faults(["ok@0.5"])
        return [str(fault) if (fault := plan.draw(V5_BALANCE).fault) else None for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        got = Counter(text for texts in pool.map(work, range(8)) for text in texts)
    got += Counter(str(step) for step in plan.scheduled)
    assert {text: got[text] for text in got if text} == {
        f"code={1000 + number}": 50 for number in range(8)
    }


# Faults of connections


CLOSING = {"refuse": httpx.RemoteProtocolError, "reset": httpx.ReadError}


@pytest.mark.parametrize("kept_alive", [False, True])
@pytest.mark.parametrize("kind", CLOSING)
def test_closes_without_an_answer(reader: Reader, kind: str, kept_alive: bool) -> None:
    """A new or reused connection ends without a byte."""
    reader.sandbox.schedule(["ok", kind] if kept_alive else [kind])
    if kept_alive:
        assert reader.read().status_code == 200
    with pytest.raises(CLOSING[kind]):
        reader.read()
    assert reader.read().status_code == 200
    assert played(reader) == [*([None] if kept_alive else []), kind, None]


def test_refuse_and_reset(reader: Reader) -> None:
    """``refuse`` closes a connection in order; ``reset`` aborts it."""
    reader.sandbox.schedule(["refuse", "reset"])
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        assert receive_all(connection) == b""
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        with pytest.raises(ConnectionResetError):
            receive_all(connection)


@pytest.mark.parametrize("ended_by", ["closing", "leaving it open"])
def test_silence(reader: Reader, ended_by: str) -> None:
    """No byte is sent, and the connection stays open until either side closes it."""
    reader.sandbox.schedule(["ok", "silence"])
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        assert connection.recv(65536)
        connection.sendall(request_bytes(reader))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert played(reader) == [None, "silence"]
        if ended_by == "closing":
            connection.settimeout(10)
            reader.sandbox.close()
            assert connection.recv(1) == b""


def test_slow_answer(reader: Reader) -> None:
    """A slow answer is correct, comes after the given delay, and delays no other."""
    reader.sandbox.set_faults(["slow=0.3"])
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: reader.read(), range(8)))
    assert time.monotonic() - start >= 0.3
    assert {answer.json()["code"] for answer in answers} == {200}
    with pytest.raises(httpx.ReadTimeout):
        reader.client.get(f"{reader.sandbox.url}{V5_BALANCE}", timeout=0.05)


def test_drip(reader: Reader) -> None:
    """Head and body are sent byte by byte, and are a correct answer in the end."""
    reader.sandbox.schedule(["drip=0", "drip=3600"])
    assert reader.read().json()["data"]["details"]
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        assert connection.recv(65536) == b"H"
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    reader.sandbox.schedule(["drip=0.0002"])
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        pieces = list(iter(lambda: connection.recv(65536), b""))
    headers, body = split(b"".join(pieces))
    assert len(pieces) > len(body) / 10
    assert int(headers["content-length"]) == len(body)
    assert json.loads(body)["code"] == 200


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
def test_cut(reader: Reader, accepted: str) -> None:
    """Half of the announced body is sent, compressed or not; then the connection ends."""
    reader.sandbox.set_faults(["cut"])
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader, accepted=accepted))
        headers, body = split(receive_all(connection))
    assert 0 < len(body) == int(headers["content-length"]) // 2
    with pytest.raises(httpx.RemoteProtocolError):
        reader.read()


def test_garbage(reader: Reader) -> None:
    """Garbage that is no HTTP is sent, also on a reused connection."""
    reader.sandbox.schedule(["ok", "garbage"])
    assert reader.read().status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        reader.read()
    reader.sandbox.schedule(["garbage"])
    with connect(reader) as connection:
        connection.sendall(request_bytes(reader))
        received = receive_all(connection)
    assert received
    assert b"HTTP" not in received


@pytest.mark.parametrize("kind", ["refuse", "reset", "silence", "garbage"])
def test_connection_faults_need_no_key(reader: Reader, kind: str) -> None:
    """Connection faults apply without a valid key, and no key is logged."""
    reader.sandbox.set_faults([kind])
    with pytest.raises(httpx.TransportError):
        reader.client.get(f"{reader.sandbox.url}{V5_BALANCE}", timeout=0.2)
    (request,) = reader.sandbox.requests
    assert (request.status, request.code, request.fault) == (None, None, Fault(kind))


# Faults of answers


@pytest.mark.parametrize("status", [200, 502, 503, 599])
def test_html(reader: Reader, status: int) -> None:
    """An HTML page is sent with any status, also for a wrong key."""
    reader.sandbox.set_faults([Fault("html", status)])
    for answer in (reader.read(), reader.get(V5_BALANCE)):
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "text/html"
        assert answer.text.startswith("<html>")
    assert [(r.status, r.code) for r in reader.sandbox.requests] == [(status, status)] * 2
    reader.sandbox.set_faults(["html"])
    assert reader.read().status_code == 502


@pytest.mark.parametrize("status", [200, 204, 304, 403, 503])
def test_status(reader: Reader, status: int) -> None:
    """A bare HTTP status is sent, and the connection stays usable."""
    reader.sandbox.schedule([Fault("status", status), "ok"])
    connection = HTTPConnection(urlsplit(reader.sandbox.url).netloc)
    try:
        connection.request("GET", f"{SAPI_BALANCE}?{reader.query(SAPI_BALANCE)}")
        answer: HTTPResponse = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
        kept = connection.sock
        connection.request("GET", f"{SAPI_BALANCE}?{reader.query(SAPI_BALANCE)}")
        assert json.loads(connection.getresponse().read())["code"] == 200
        assert connection.sock is kept
    finally:
        connection.close()


def test_redirect(reader: Reader) -> None:
    """A redirect points to the same path and signed query at another address."""
    query = reader.query(SAPI_BALANCE)
    reader.sandbox.schedule(["redirect", "redirect=http://127.0.0.1:1/v"])
    for base in ("https://elsewhere.invalid", "http://127.0.0.1:1/v"):
        answer = reader.get(SAPI_BALANCE, query)
        assert answer.status_code == 302
        assert answer.headers["Location"] == f"{base}{SAPI_BALANCE}?{query}"


def test_maintenance(reader: Reader) -> None:
    """During maintenance, every call is answered with that error, signed or not."""
    reader.sandbox.set_faults(["maintenance"])
    for path in (*SIGNED_PATHS, *PUBLIC_PATHS):
        answer = reader.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "maintain"})


def test_ratelimit(reader: Reader) -> None:
    """Too many requests: 429 with the code, and the wait in ms and whole seconds."""
    reader.sandbox.set_faults(["ratelimit=1.25"])
    answer = reader.read()
    assert answer.status_code == 429
    assert answer.json() == {"code": 1032, "message": "The number of access exceeded limit"}
    names = ("ratelimit-limit", "ratelimit-interval", "ratelimit-remaining", "ratelimit-reset")
    assert [answer.headers[name] for name in names] == ["72", "3000", "0", "1250"]
    assert answer.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("path", "code", "body"),
    [
        (SAPI_BALANCE, "1003", {"code": 1003, "message": "key or signature refused"}),
        (V5_BALANCE, "1003", {"code": 1003, "message": "key or signature refused"}),
        (SAPI_BALANCE, "1004", {"code": 1004, "message": "system busy or failed"}),
        (
            V5_BALANCE,
            "1004",
            {"code": "1004", "msg": "system busy or failed", "data": None, "ts": str(MS)},
        ),
        (
            V5_BALANCE,
            "403",
            {
                "status": "error",
                "err_code": 403,
                "err_msg": "key or signature refused",
                "ts": MS,
            },
        ),
        (
            SAPI_BALANCE,
            "gateway-internal-error",
            {
                "status": "error",
                "err-code": "gateway-internal-error",
                "err-msg": "system busy or failed",
                "data": None,
            },
        ),
        (V5_BALANCE, "maintain", {"status": "maintain"}),
        (SAPI_BALANCE, "99999", {"code": 99999, "message": "unknown error"}),
    ],
)
def test_code(reader: Reader, path: str, code: str, body: object) -> None:
    """A code is sent in the shape of the path's variant."""
    reader.sandbox.set_faults([Fault("code", code)])
    answer = reader.read(path)
    assert (answer.status_code, answer.json()) == (200, body)
    assert str(reader.sandbox.requests[0].code) == code


def test_older_paths_refuse_in_their_own_shape(reader: Reader) -> None:
    """Older paths send errors in the older API's shape."""
    reader.sandbox.set_faults([Fault("code", 1004, path="/api/v1/timestamp")])
    assert reader.get("/api/v1/timestamp").json() == {
        "status": "error",
        "err_code": 1004,
        "err_msg": "system busy or failed",
        "ts": MS,
    }


def test_too_many_requests_have_their_status(reader: Reader) -> None:
    """Code 1032 is sent with HTTP 429, as for a real excess."""
    reader.sandbox.set_faults(["code=1032"])
    assert reader.read().status_code == 429


def test_bomb(reader: Reader) -> None:
    """A bomb is small on the wire in any encoding, and unpacks to a correct answer.

    A client that unpacks it without a limit notices nothing but its memory use.
    """
    reader.sandbox.schedule(["bomb=9", "bomb"])
    for mebibytes in (9, 64):
        with connect(reader) as connection:
            connection.sendall(request_bytes(reader))
            answer = HTTPResponse(connection)
            answer.begin()
            packed = answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(packed) < mebibytes * MIB / 500
        text = gzip.decompress(packed)
        assert len(text) > mebibytes * MIB
        assert json.loads(text)["data"]["details"]


def test_a_large_bomb_delays_no_other_answer(reader: Reader) -> None:
    """The largest bomb is sent at once, and other clients are answered at once, too."""
    reader.sandbox.schedule(["bomb=4096"])
    with connect(reader) as connection:
        connection.settimeout(3)
        connection.sendall(request_bytes(reader))
        assert connection.recv(9) == b"HTTP/1.1 "
        assert reader.client.get(f"{reader.sandbox.url}/heartbeat/", timeout=3).status_code == 200


def test_truncated(reader: Reader) -> None:
    """Half of the JSON is sent with a matching length."""
    whole = reader.read().content
    reader.sandbox.set_faults(["truncated"])
    answer = reader.read()
    assert answer.content == whole[: len(whole) // 2]
    with pytest.raises(json.JSONDecodeError):
        answer.json()


EDITS: list[tuple[str, Callable[[Any], object]]] = [
    ("null", lambda answer: answer.update(data=None)),
    ("null=data.details", lambda answer: answer["data"].update(details=None)),
    ("missing", lambda answer: answer["data"]["details"][0].pop("equity")),
    ("missing=data", lambda answer: answer.pop("data")),
    ("missing=data.details[1]", lambda answer: answer["data"]["details"].pop(1)),
    ("blank", lambda answer: answer["data"]["details"][0].update(equity="")),
    ("blank=data.details[2].currency", lambda a: a["data"]["details"][2].update(currency="")),
    ("wrong-type", lambda answer: answer["data"]["details"][0].update(equity={})),
    ("wrong-type=data", lambda answer: answer.update(data="unexpected")),
    ("wrong-type=data.details", lambda answer: answer["data"].update(details="unexpected")),
    ("wrong-type=ts", lambda answer: answer.update(ts={})),
]


@pytest.mark.parametrize(("text", "edit"), EDITS, ids=[text for text, _ in EDITS])
@pytest.mark.parametrize("path", BALANCES)
def test_spoils_one_field(
    reader: Reader, path: str, text: str, edit: Callable[[Any], object]
) -> None:
    """One field of a correct answer is changed; every other byte stays."""
    right = reader.read(path)
    expected = copy.deepcopy(right.json())
    edit(expected)
    reader.sandbox.set_faults([text])
    answer = reader.read(path)
    compact = json.dumps(expected, ensure_ascii=False, separators=(",", ":"))
    assert answer.text == compact != right.text
    assert answer.headers["Content-Length"] == str(answer.num_bytes_downloaded)
    assert reader.sandbox.requests[-1].fault == parse_fault(text)


@pytest.mark.parametrize("place", ["data.details[3].equity", "data[0]", "data.details.x", "ts.x"])
def test_answers_without_the_field(reader: Reader, place: str) -> None:
    """An answer without the field is sent unchanged, and logged as such."""
    reader.sandbox.set_faults([Fault("missing", place)])
    spoiled = reader.read().json()
    reader.sandbox.clear_faults()
    assert spoiled == reader.read().json()
    assert played(reader) == [None, None]


ACCEPTED_ONLY = ["code=1004", "ratelimit", "null", "missing", "blank", "wrong-type"]


@pytest.mark.parametrize("text", ACCEPTED_ONLY)
def test_refusals_come_before_answer_faults(reader: Reader, text: str) -> None:
    """Faults of accepted requests do not change how a wrong signature is refused."""
    assert parse_fault(text).rule.accepted_only
    reader.sandbox.set_faults([text])
    answer = reader.get(V5_BALANCE, reader.query(SAPI_BALANCE))
    assert answer.json()["code"] == 1003
    assert reader.read(V5_BALANCE, "locked").json()["code"] == "12009"
    assert played(reader) == [None, None]
    assert {str(rule.kind) for rule in fault_kinds() if rule.accepted_only} == {
        parse_fault(other).kind for other in ACCEPTED_ONLY
    }


@pytest.mark.parametrize("text", ["code=1004", "reset", "html"])
def test_faulty_answers_count_for_the_limit(reader: Reader, text: str) -> None:
    """A valid request counts for the read limit even if a fault spoils the answer."""
    reader.sandbox.schedule([text])
    with contextlib.suppress(httpx.TransportError):
        reader.read()
    assert reader.sandbox.requests[0].uid == "100000001"
    assert reader.read().headers["ratelimit-remaining"] == "70"


# The clock


@pytest.mark.parametrize("ahead", [600, -7200, 86400.5])
def test_wrong_clock(reader: Reader, ahead: float) -> None:
    """``ts``, ``Date`` and the check of a request's time use the wrong clock on every path."""
    reader.sandbox.set_faults([Fault("clock", ahead)])
    for path in (*SIGNED_PATHS, *PUBLIC_PATHS):
        query = reader.query(path, seconds_off=ahead)
        answer = reader.get(path, query if path in SIGNED_PATHS else "")
        assert answer.json()["ts"] == MS + round(ahead * 1000)
        date = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        assert date == int(NOW + ahead)
    refused = reader.read()
    assert refused.json()["code"] == 12001
    assert parsedate_to_datetime(refused.headers["Date"]).timestamp() == int(NOW + ahead)
    assert set(played(reader)) == {"clock"}
    assert {request.time for request in reader.sandbox.requests} == {NOW}


def test_log_names_the_clock(reader: Reader) -> None:
    """If a wrong clock causes a refusal before another fault, the log names the clock."""
    reader.sandbox.set_faults(["clock=600", "code=1004"])
    assert reader.read().json()["code"] == 12001
    assert (
        reader.get(V5_BALANCE, reader.query(V5_BALANCE, seconds_off=600)).json()["code"] == "1004"
    )
    assert played(reader) == ["clock", "code"]


def test_read_limit_ignores_the_wrong_clock(reader: Reader) -> None:
    """A wrong clock does not allow more reads."""
    for number in range(80):
        ahead = 600 * (number % 2)
        reader.sandbox.set_faults([Fault("clock", ahead)])
        reader.get(V5_BALANCE, reader.query(V5_BALANCE, seconds_off=ahead))
    assert Counter(request.code for request in reader.sandbox.requests) == {200: 72, 1032: 8}


# The sandbox's interface


def test_plays_the_same_faults_by_seed() -> None:
    """Two sandboxes with one seed play the same faults."""
    faults: list[Fault | str] = ["html@0.3", "reset@0.3", Fault("code", 1004, 0.2)]
    logs = []
    for _ in range(2):
        clock = Clock()
        with (
            Sandbox(clock=clock, faults=faults, seed=11) as sandbox,
            httpx.Client(trust_env=False) as client,
        ):
            reader = Reader(sandbox, clock, client)
            for _ in range(60):
                with contextlib.suppress(httpx.ReadError):
                    reader.read()
            logs.append(played(reader))
    assert logs[0] == logs[1]
    assert set(logs[0]) == {None, "html", "reset", "code"}


def test_faults_and_schedule_can_be_read(reader: Reader) -> None:
    """Faults and the remaining schedule can be read, changed and cleared."""
    sandbox = reader.sandbox
    assert (sandbox.faults, sandbox.scheduled) == ((), ())
    sandbox.set_faults(["html=503", "reset@0"])
    sandbox.schedule(["code=1004", "ok"])
    assert reader.read().json()["code"] == 1004
    assert (sandbox.faults, sandbox.scheduled) == (
        (Fault("html", 503), Fault("reset", probability=0)),
        (Fault("ok"),),
    )
    with pytest.raises(FaultError):
        sandbox.set_faults(["cut", "nonsense"])
    sandbox.clear_faults()
    assert (sandbox.faults, sandbox.scheduled) == ((), ())
    assert reader.read().json()["code"] == 200


def test_many_threads_get_what_is_logged(reader: Reader) -> None:
    """Under concurrent requests and changes, each request gets the fault in its log."""
    reader.sandbox.set_faults(["html@0.2", "reset@0.2", "null@0.2"], seed=12)

    def read(number: int) -> str | None:
        if number % 16 == 0:
            reader.sandbox.schedule(["truncated"])
            reader.sandbox.set_faults(["html@0.2", "refuse@0.2", "null@0.2"])
        try:
            answer = reader.read(BALANCES[number % 2], ("main", "small", "adl")[number % 3])
        except httpx.ReadError:
            return "reset"
        except httpx.RemoteProtocolError:
            return "refuse"
        if answer.status_code == 502:
            return "html"
        try:
            return None if answer.json()["data"] else "null"
        except json.JSONDecodeError:
            return "truncated"

    with ThreadPoolExecutor(8) as pool:
        got = Counter(pool.map(read, range(192)))
    assert got == Counter(played(reader))
    assert got["truncated"] == 12
    assert {None, "html", "refuse", "null"} <= got.keys()


@pytest.mark.parametrize("text", ["silence", "drip=3600", "drip=0.001", "slow=3600"])
def test_closes_cleanly(text: str) -> None:
    """``close()`` ends all open connections at once, and leaves no thread or socket."""
    clock = Clock()
    sandbox = Sandbox(clock=clock).start()
    with httpx.Client(trust_env=False) as client:
        reader = Reader(sandbox, clock, client)
        connections = [connect(reader) for _ in range(8)]
        sandbox.set_faults([text])
        for connection in connections:
            connection.sendall(request_bytes(reader))
        wait_until(lambda: sandbox.request_count == len(connections))
    start = time.monotonic()
    sandbox.close()
    assert time.monotonic() - start < 2
    assert not sandbox_threads()
    for connection in connections:
        with contextlib.suppress(ConnectionResetError):
            receive_all(connection)
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        connect(reader)
    with sandbox:
        sandbox.clear_faults()
        assert httpx.get(f"{sandbox.url}/heartbeat/", trust_env=False).status_code == 200
    gc.collect()  # anything left open would warn here


def test_faults_may_be_set_before_it_starts() -> None:
    """Faults can be set and cleared before ``start()``."""
    sandbox = Sandbox(faults=["html"])
    sandbox.clear_faults()
    sandbox.schedule(["html=503"])
    with sandbox:
        url = f"{sandbox.url}{V5_BALANCE}"
        assert [httpx.get(url, trust_env=False).status_code for _ in range(2)] == [503, 200]


# Exceptions for users of the exchanges


EXCEPTIONS: list[tuple[str, type[Exception]]] = [
    ("refuse", ccxt.NetworkError),
    ("reset", ccxt.NetworkError),
    ("silence", ccxt.RequestTimeout),
    ("slow=60", ccxt.RequestTimeout),
    ("drip", ccxt.RequestTimeout),
    ("cut", ccxt.NetworkError),
    ("garbage", ccxt.NetworkError),
    ("html", ccxt.ExchangeNotAvailable),
    ("html=200", ccxt.BadResponse),
    ("status=503", ccxt.ExchangeNotAvailable),
    ("status=200", ccxt.BadResponse),
    ("redirect", ccxt.BadResponse),
    ("maintenance", ccxt.OnMaintenance),
    ("ratelimit", ccxt.RateLimitExceeded),
    ("code=99999", ccxt.ExchangeError),
    ("truncated", ccxt.BadResponse),
    ("bomb", ccxt.BadResponse),
    ("null", ccxt.BadResponse),
    ("missing", ccxt.BadResponse),
    ("blank", ccxt.BadResponse),
    ("wrong-type", ccxt.BadResponse),
]


@pytest.mark.parametrize(("text", "exception"), EXCEPTIONS, ids=[text for text, _ in EXCEPTIONS])
def test_a_user_gets_one_exception(
    call: Caller, exchange_id: str, text: str, exception: type[Exception]
) -> None:
    """Each kind of fault raises one ccxt exception, in all four classes."""
    held_up = issubclass(exception, ccxt.RequestTimeout)
    with Sandbox(faults=[text]) as sandbox:
        config = {
            **sandbox.config(exchange_id),
            "timeout": 250 if held_up else 10_000,
            # The process's read budget outlives each sandbox.
            "enableRateLimit": False,
            "options": {"maxRetriesOnFailure": 0},
        }
        with pytest.raises(exception):
            call(exchange_id, config, "fetch_balance")
        assert sandbox.requests[0].fault == parse_fault(text)


def test_every_kind_is_tested() -> None:
    """The test above covers every kind of fault except ``clock``, which clients correct."""
    tried = {parse_fault(text).kind for text, _ in EXCEPTIONS}
    reads = {rule.kind for rule in fault_kinds() if not rule.kind.startswith("push-")}
    assert reads - tried == {"ok", "clock"}


@pytest.mark.parametrize("exchange_class", [Sunx, HtxFutures])
def test_a_user_gets_the_exception_of_each_code(
    exchange_class: type[Sunx] | type[HtxFutures],
) -> None:
    """Each known error code, in its venue's shape, raises its exception."""
    with Sandbox() as sandbox:
        config = {
            **sandbox.config("sunx" if exchange_class is Sunx else "htxfutures"),
            "enableRateLimit": False,
            "options": {"maxRetriesOnFailure": 0},
        }
        with exchange_class(config) as exchange:
            for rule in ERROR_RULES:
                for code in rule.codes:
                    sandbox.set_faults([Fault("code", code)])
                    with pytest.raises(rule.exception, match=code):
                        exchange.fetch_balance()
