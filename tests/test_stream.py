import asyncio
import base64
import copy
import gc
import gzip
import hashlib
import hmac
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ccxt
import pytest
from aiohttp import web
from ccxt.base.errors import (
    AccountNotEnabled,
    AuthenticationError,
    BadRequest,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    ExchangeError,
    ExchangeNotAvailable,
    InvalidNonce,
    NetworkError,
    NotSupported,
    OnMaintenance,
    PermissionDenied,
    RateLimitExceeded,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sunx
from sunx_adapter.protocol.push import PUSH_ERROR_RULES, AccountUpdate, read_message
from sunx_adapter.stream import StreamState
from sunx_adapter.stream.cursor import Cursor, Cursors
from tests.conftest import CLASSES, KEYS, payload
from tests.pushing import QUICK, Venue, asynchronous, wait_for_total, with_venue

LIVE = 162.331953938562004875
VECTORS = Path(__file__).parent.parent / "conformance" / "vectors"
ED25519_KEY = base64.b64encode(bytes(range(32))).decode()


# -- balances -------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@with_venue
async def test_snapshot_and_changes(venue: Venue, exchange_id: str, compressed: bool) -> None:
    """The snapshot arrives at once, then each change; ``info`` is the message unchanged."""
    venue.compressed = compressed
    async with CLASSES[exchange_id, True](venue.config()) as exchange:
        balance = await exchange.watch_balance()
        assert balance["USDT"] == {"free": LIVE, "used": 0.0, "total": LIVE}
        assert balance["timestamp"] == venue.ts
        assert balance["info"] == venue.notification()
        for amount in (1, 2.5, 3):
            await venue.push(amount)
            assert (await exchange.watchBalance())["total"] == {"USDT": amount}
    assert venue.connections == 1
    assert venue.reads == 0


def _successes() -> list[Any]:
    found = []
    for path in sorted(VECTORS.glob("*.json")):
        vector = json.loads(path.read_bytes())
        body = vector.get("answer", {}).get("body", {})
        if "balance" in vector.get("expect", {}) and ("json" in body or "text" in body):
            found.append(pytest.param(vector, id=path.stem))
    return found


@pytest.mark.parametrize("vector", _successes())
@with_venue
async def test_vectors_by_push(venue: Venue, vector: dict[str, Any]) -> None:
    """Every account of the conformance vectors gives the same balance by push as by read."""
    body = vector["answer"]["body"]
    answer: str = body["text"] if "text" in body else json.dumps(body["json"])
    pushed = '{"op":"notify","topic":"account",' + answer.lstrip("\ufeff \r\n\t")[1:]
    venue.snapshots = False
    config = {**venue.config(), "number": str}
    params = vector.get("params") or vector.get("config", {}).get("options", {})
    params = {name: params[name] for name in ("free", "type") if name in params}
    async with AsyncHtxFutures(config) as exchange:
        waiting = asyncio.create_task(exchange.watch_balance(params))
        await venue.wait_for_subscriptions(1)
        await venue.broadcast(pushed)
        balance = await waiting
    for code, figures in vector["expect"]["balance"].items():
        assert {name: Decimal(text) for name, text in balance[code].items()} == {
            name: Decimal(text) for name, text in figures.items()
        }
    assert balance["total"].keys() == vector["expect"]["balance"].keys()
    assert balance["timestamp"] == vector["expect"]["timestamp"]
    assert balance["datetime"] == vector["expect"]["datetime"]


@pytest.mark.parametrize("free", ["margin", "available", "withdrawable"])
@pytest.mark.parametrize("name", ["sunx-documented", "htx-v5-documented", "htx-v5-live-rest"])
@with_venue
async def test_the_same_by_push_and_by_read(venue: Venue, name: str, free: str) -> None:
    """One account gives the same balance by push and by read, under every policy."""
    venue.data = json.loads(payload(name))["data"]
    async with AsyncSunx({**venue.config(), "number": Decimal}) as exchange:
        pushed = await exchange.watch_balance({"free": free})
        read = await exchange.fetch_balance({"free": free})
    assert pushed.pop("info")["data"] == read.pop("info")["data"]
    assert pushed == read


# -- waiting calls --------------------------------------------------------------------------


@with_venue
async def test_two_waiters_share_one_connection(venue: Venue) -> None:
    """Two tasks with different policies get the same state over one connection."""
    row = venue.data["details"][0]
    row["withdraw_available"] = "100"
    async with AsyncSunx(venue.config()) as exchange:
        first, second = await asyncio.gather(
            exchange.watch_balance({"free": "withdrawable"}), exchange.watch_balance()
        )
        assert (first["USDT"]["free"], second["USDT"]["free"]) == (100, LIVE)
        first["info"]["data"].clear()
        assert second["info"] == venue.notification()
    assert venue.connections == 1


@with_venue
async def test_cancelling_one_waiter(venue: Venue) -> None:
    """Cancelling one waiting call does not affect the others."""
    venue.snapshots = False
    async with AsyncSunx(venue.config()) as exchange:
        first = asyncio.create_task(exchange.watch_balance())
        second = asyncio.create_task(exchange.watch_balance())
        await venue.wait_for_subscriptions(1)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await venue.push(7)
        assert (await second)["USDT"]["total"] == 7
    assert venue.connections == 1


@with_venue
async def test_a_late_task_gets_the_newest(venue: Venue) -> None:
    """A task that starts later gets the newest balance at once, and no older one."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        watcher = exchange.watch_balances()
        await anext(watcher)
        for amount in range(1, 51):
            await venue.push(amount)
        assert (await wait_for_total(watcher, 50))["USDT"]["total"] == 50
        assert (await exchange.watch_balance())["USDT"]["total"] == 50


@with_venue
async def test_a_task_per_call_waits_for_changes(venue: Venue) -> None:
    """A loop with a new task per call does not get the same balance twice."""
    async with AsyncSunx(venue.config()) as exchange:
        await asyncio.create_task(exchange.watch_balance())
        second = asyncio.create_task(exchange.watch_balance())
        done, _ = await asyncio.wait([second], timeout=0.05)
        assert not done
        await venue.push(5)
        assert (await second)["USDT"]["total"] == 5


@asynchronous
async def test_cursors_of_ended_tasks_are_freed() -> None:
    """After many short tasks beside a long one, at most one of their cursors is left."""
    cursors, seen = Cursors(), set()

    async def call() -> None:
        cursors.current().seen += 1
        seen.add(id(cursors.current()))

    for number in range(100):
        cursors.current().seen = 2 * number
        await asyncio.create_task(call())
    kept = {id(each) for each in gc.get_objects() if isinstance(each, Cursor)}
    assert len(kept & seen) == 1


@with_venue
async def test_each_task_starts_with_the_newest(venue: Venue) -> None:
    """Each new task, and each ``async for``, gets the newest balance at once."""
    async with AsyncSunx(venue.config()) as exchange:

        async def watch(count: int) -> list[float]:
            return [(await exchange.watch_balance())["USDT"]["total"] for _ in range(count)]

        first = asyncio.create_task(watch(2))
        await venue.wait_for_subscriptions(1)
        await asyncio.sleep(0.01)
        assert await asyncio.create_task(watch(1)) == [LIVE]
        assert (await anext(exchange.watch_balances()))["USDT"]["total"] == LIVE
        await venue.push(8)
        assert await first == [LIVE, 8]


@with_venue
async def test_async_for(venue: Venue) -> None:
    """``watch_balances()`` yields one balance after the other, and can be left at any time."""
    async with AsyncSunx(venue.config()) as exchange:
        amounts = []
        async for balance in exchange.watch_balances({"free": "available"}):
            amounts.append(balance["USDT"]["total"])
            if len(amounts) == 3:
                break
            await venue.push(len(amounts))
        assert amounts == [LIVE, 1, 2]


@pytest.mark.parametrize("params", [{"free": "all"}, {"type": "spot"}, {"more": 1}], ids=str)
@with_venue
async def test_unsupported_parameters(venue: Venue, params: dict[str, Any]) -> None:
    """Unsupported parameters are refused before anything is sent."""
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(NotSupported):
            await exchange.watch_balance(params)
    assert venue.connections == 0


@asynchronous
async def test_missing_keys() -> None:
    """Without keys, the call fails before anything is sent."""
    async with AsyncSunx() as exchange:
        with pytest.raises(AuthenticationError, match="requires apiKey"):
            await exchange.watch_balance()


@pytest.mark.parametrize("make", [Sunx, HtxFutures])
def test_synchronous_classes_do_not_watch(make: Any) -> None:
    """The synchronous classes raise NotSupported, like ccxt's."""
    with make(KEYS) as exchange:
        assert not exchange.has["watchBalance"]
        with pytest.raises(NotSupported):
            exchange.watch_balance()


def test_has_watch_balance() -> None:
    """The asynchronous classes list ``watchBalance`` in ``has``."""
    exchange = AsyncSunx(KEYS)
    assert exchange.pro
    assert exchange.has["ws"]
    assert exchange.has["watchBalance"]


# -- login ----------------------------------------------------------------------------------


def _signed_text(message: dict[str, Any], path: str, host: str) -> str:
    names = ("AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp")
    query = "&".join(f"{name}={quote(message[name], safe='')}" for name in names)
    return f"GET\n{host}\n{path}\n{query}"


@with_venue
async def test_login_with_hmac(venue: Venue) -> None:
    """The login signs the WebSocket path; the signature is not percent-encoded."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
    [login] = venue.received("auth")
    text = _signed_text(login, "/ws/v1/notification", "127.0.0.1")
    digest = hmac.new(KEYS["secret"].encode(), text.encode(), hashlib.sha256).digest()
    assert login.pop("Signature") == base64.b64encode(digest).decode()
    assert login.keys() == {
        *("op", "type", "AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp")
    }
    assert (login["type"], login["SignatureVersion"]) == ("api", "2")
    assert venue.received("sub") == [{"op": "sub", "cid": "1", "topic": "account"}]


@with_venue
async def test_login_with_ed25519(venue: Venue) -> None:
    """The login signs with Ed25519, another path and ``signatureHost`` too."""
    config = venue.config(signatureHost="api.hbdm.com", pathVariant="v5")
    config |= {"secret": None, "privateKey": ED25519_KEY}
    async with AsyncSunx(config) as exchange:
        await exchange.watch_balance()
    [login] = venue.received("auth")
    text = _signed_text(login, "/ws/v5/notification", "api.hbdm.com")
    public_key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    public_key.verify(base64.b64decode(login["Signature"]), text.encode())
    assert login["SignatureMethod"] == "Ed25519"


PERMANENT_CODES: list[tuple[object, type[BaseError]]] = [
    (2001, AuthenticationError),
    (2002, AuthenticationError),
    (2003, AuthenticationError),
    ("2003", AuthenticationError),
    (2007, AccountNotEnabled),
    (2010, BadRequest),
    (2040, BadRequest),
    (12005, PermissionDenied),
    (12001, InvalidNonce),
]
TEMPORARY_CODES: list[tuple[object, type[BaseError]]] = [
    (2004, RateLimitExceeded),
    (2030, RateLimitExceeded),
    (2005, ExchangeNotAvailable),
    (2012, ExchangeNotAvailable),
    (2014, ExchangeNotAvailable),
    (1006, OnMaintenance),
]


@pytest.mark.parametrize("op", ["auth", "sub", "error"])
@pytest.mark.parametrize(("code", "error"), PERMANENT_CODES, ids=str)
@with_venue
async def test_permanent_refusals(
    venue: Venue, op: str, code: object, error: type[BaseError]
) -> None:
    """A permanent refusal fails all waiting calls at once and is not retried."""
    refused = {"err-code": code, "err-msg": "no"}
    if op == "auth":
        venue.auth_reply = lambda _: refused
    else:
        venue.sub_reply = refused if op == "sub" else {"op": "error", **refused}
    # The venue's clock agrees with ours, so the time is not the cause.
    async with AsyncSunx(venue.config()) as exchange:
        venue.ts = exchange.nonce()
        results = await asyncio.gather(
            exchange.watch_balance(), exchange.watch_balance(), return_exceptions=True
        )
        assert [type(result) for result in results] == [error, error]
        assert all(str(code) in str(result) for result in results)
        assert exchange.stream_status().state is StreamState.REFUSED
    assert venue.connections == 1


@pytest.mark.parametrize("op", ["auth", "sub"])
@with_venue
async def test_an_unknown_refusal(venue: Venue, op: str) -> None:
    """A refusal of a login or subscription with an unknown code is permanent."""
    refused = {"err-code": 9999, "err-msg": "no"}
    venue.sub_reply = refused if op == "sub" else venue.sub_reply
    venue.auth_reply = lambda _: refused if op == "auth" else {"err-code": 0}
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(ExchangeError, match="9999 no"):
            await exchange.watch_balance()
    assert venue.connections == 1


@pytest.mark.parametrize("op", ["auth", "error"])
@pytest.mark.parametrize(("code", "error"), TEMPORARY_CODES, ids=str)
@with_venue
async def test_temporary_refusals(
    venue: Venue, op: str, code: int, error: type[NetworkError]
) -> None:
    """A temporary refusal is retried; a call that waits too long raises its exception."""
    refused = {"err-code": code, "err-msg": "no"}
    if op == "auth":
        venue.auth_reply = lambda _: refused
    else:
        venue.sub_reply = {"op": "error", **refused}
    venue.snapshots = False
    async with AsyncSunx(venue.config(streamGapTimeout=400)) as exchange:
        with pytest.raises(error, match=str(code)):
            await exchange.watch_balance()
        venue.auth_reply = lambda _: {"err-code": 0}
        venue.sub_reply = {"err-code": 0}
        venue.snapshots = True
        balance = None
        while balance is None:
            try:
                balance = await exchange.watch_balance()
            except NetworkError:
                continue
    assert venue.connections > 1


def test_every_code_is_in_the_table() -> None:
    """The tests above cover each code of the table."""
    tested = {str(code): error for code, error in [*PERMANENT_CODES, *TEMPORARY_CODES]}
    for rule in PUSH_ERROR_RULES:
        assert all(tested[code] is rule.exception for code in rule.codes)


@with_venue
async def test_a_refused_key_is_not_retried(venue: Venue) -> None:
    """A refused key fails without a new connection; another key is tried."""
    venue.auth_reply = lambda message: {
        "err-code": 0 if message["AccessKeyId"] == "another" else 2003
    }
    async with AsyncSunx(venue.config()) as exchange:
        venue.ts = exchange.nonce()
        for _ in range(3):
            with pytest.raises(AuthenticationError, match="not tried again"):
                await exchange.watch_balance()
        assert venue.connections == 1
        exchange.apiKey = "another"
        assert (await exchange.watch_balance())["USDT"]["total"] == LIVE
    assert venue.connections == 2


@with_venue
async def test_another_key_gets_another_connection(venue: Venue) -> None:
    """A changed key is used from then on, over a new connection."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        exchange.apiKey = "another"
        await exchange.watch_balance()
        await venue.push(3)
        assert (await exchange.watch_balance())["USDT"]["total"] == 3
    assert [login["AccessKeyId"] for login in venue.received("auth")] == [KEYS["apiKey"], "another"]


@pytest.mark.parametrize("code", [12001, 2003])
@with_venue
async def test_a_refused_time_is_corrected_once(venue: Venue, code: int) -> None:
    """If our clock differs much from the venue's, the login is retried with the venue's time."""
    first = []

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        first.append(1)
        return {"err-code": code if len(first) == 1 else 0}

    venue.auth_reply = answer
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        assert abs(exchange.nonce() - venue.ts) < 60_000
    logins = venue.received("auth")
    assert len(logins) == 2
    assert logins[1]["Timestamp"].startswith("2026-06-26T")


@with_venue
async def test_time_refused_again(venue: Venue) -> None:
    """A clock is corrected once; a second refusal is permanent."""
    venue.auth_reply = lambda _: {"err-code": 12001}
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(InvalidNonce):
            await exchange.watch_balance()
    assert venue.connections == 2


# -- dropped connections --------------------------------------------------------------------


@pytest.mark.long("drops push connections 500 times")
@asynchronous
async def test_five_hundred_drops_lose_no_last_state() -> None:
    """After each dropped connection, the last state before or during the gap arrives."""
    await asyncio.gather(*(_lose_no_last_state(drops=100) for _ in range(5)))


async def _lose_no_last_state(drops: int) -> None:
    async with Venue() as venue, AsyncSunx(venue.config()) as exchange:
        balances = exchange.watch_balances()
        await anext(balances)
        for amount in range(1, drops + 1):
            # Some states are pushed just before the drop, some not at all.
            venue.change(amount)
            if amount % 2:
                await venue.broadcast(venue.notification())
            await venue.drop()
            assert (await wait_for_total(balances, amount))["USDT"]["total"] == amount
            await venue.wait_for_subscriptions(amount + 1)
        await venue.push(-1)
        await wait_for_total(balances, -1)
        assert exchange.stream_status().connections == drops + 1
        assert venue.reads == 0


@with_venue
async def test_waiters_notice_only_a_delay(venue: Venue) -> None:
    """A drop without a change gives waiting calls neither a balance nor an exception."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        waiting = asyncio.create_task(exchange.watch_balance())
        await venue.drop()
        await venue.wait_for_subscriptions(2)
        await venue.push(9)
        assert (await waiting)["USDT"]["total"] == 9


@with_venue
async def test_a_long_gap_is_a_network_error(venue: Venue) -> None:
    """A call that waits longer than the gap timeout raises NetworkError; the stream retries."""
    async with AsyncSunx(venue.config(streamGapTimeout=100)) as exchange:
        await exchange.watch_balance()
        venue.max_connections = venue.connections
        await venue.drop()
        with pytest.raises(NetworkError, match=r"streamGapTimeout.*503"):
            await exchange.watch_balance()
        status = exchange.stream_status()
        assert status.state in {StreamState.WAITING, StreamState.CONNECTING}
        assert status.doubted is not None
        assert status.doubted >= 0.1
        venue.change(4)
        venue.max_connections = 1_000_000
        assert (await wait_for_total(_ignoring_network_errors(exchange), 4))["USDT"]["total"] == 4
        assert exchange.stream_status().doubted is None


async def _ignoring_network_errors(exchange: Any) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            yield await exchange.watch_balance()
        except NetworkError:
            continue


@pytest.mark.parametrize("words", ["close", "error", "silence"])
@with_venue
async def test_causes_of_a_reconnect(venue: Venue, words: str) -> None:
    """An announced close, an internal error and silence each lead to a reconnect."""
    async with AsyncSunx(venue.config(streamSilenceTimeout=100)) as exchange:
        await exchange.watch_balance()
        if words != "silence":
            await venue.broadcast({"op": words, "ts": venue.ts, "err-msg": "internal"})
        await venue.wait_for_subscriptions(2)
        venue.change(2)
        assert (await wait_for_total(exchange.watch_balances(), 2))["USDT"]["total"] == 2


@pytest.mark.parametrize("ts", ["1492420473058", 1492420473058])
@with_venue
async def test_heartbeats_are_answered(venue: Venue, ts: object) -> None:
    """Each ping gets a pong with its ts, and counts as a sign of life."""
    async with AsyncSunx(venue.config(streamSilenceTimeout=1000)) as exchange:
        await exchange.watch_balance()
        for count in range(1, 12):
            await venue.broadcast({"op": "ping", "ts": ts})
            await venue.wait_for_pongs(count)
            await asyncio.sleep(0.1)
    assert venue.received("pong") == [{"op": "pong", "ts": ts}] * 11
    assert venue.connections == 1


@with_venue
async def test_missing_snapshot(venue: Venue) -> None:
    """If no snapshot follows a subscription, the account is read over REST."""
    venue.snapshots = False
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20)) as exchange:
        assert (await exchange.watch_balance())["USDT"]["total"] == LIVE
        venue.change(11)
        await venue.drop()
        assert (await exchange.watch_balance())["USDT"]["total"] == 11
        await venue.push(12)
        assert (await exchange.watch_balance())["USDT"]["total"] == 12
    assert venue.reads == 2


@with_venue
async def test_versions_that_restart(venue: Venue) -> None:
    """If the venue's versions restart, a read confirms the new ones."""
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20)) as exchange:
        await exchange.watch_balance()
        venue.data["version"] = 0
        await venue.push(1)
        assert (await exchange.watch_balance())["USDT"]["total"] == 1
        assert venue.reads == 1
        await venue.push(2)
        assert (await exchange.watch_balance())["USDT"]["total"] == 2
    assert venue.reads == 1


# -- messages -------------------------------------------------------------------------------


@pytest.mark.parametrize("older", ["version", "ts"])
@with_venue
async def test_older_messages_are_ignored(venue: Venue, older: str) -> None:
    """A message with an older version or time is ignored."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        old = copy.deepcopy(venue.notification())
        old["data"]["details"][0]["equity"] = "13"
        old["data"]["version"] += -1 if older == "version" else 1
        old["ts"] += -1 if older == "ts" else 1
        await venue.broadcast(old)
        await venue.push(14)
        assert (await exchange.watch_balance())["USDT"]["total"] == 14


BAD_MESSAGES: dict[str, object] = {
    "no JSON": "<html>",
    "ends early": payload("htx-v5-live-stream")[:100].decode(),
    "damaged gzip": gzip.compress(b"{}")[:-9] + b"123456789",
    "half of gzip": gzip.compress(b'{"op":"ping"}')[:15],
    "no UTF-8": b"\xff\xfe{}",
    "a list": [1],
    "no op": {"topic": "account"},
    "unknown op": {"op": "nonsense"},
    "no data": {"op": "notify", "topic": "account", "ts": 1},
    "null data": {"op": "notify", "topic": "account", "ts": 1, "data": None},
    "null details": {"op": "notify", "topic": "account", "data": {"details": None}},
    "bad row": {"op": "notify", "topic": "account", "data": {"details": [1]}},
    "bad ts": {"op": "notify", "topic": "account", "ts": {}, "data": {"details": []}},
    "bad version": {"op": "notify", "topic": "account", "data": {"version": "x", "details": []}},
    "twice": '{"op":"notify","topic":"account","data":{"details":[],"details":[]}}',
    "bad amount": {"op": "notify", "topic": "account", "data": {"details": [{"currency": "A"}]}},
    "a bomb": gzip.compress(b" " * 2_000_000),
}


@pytest.mark.parametrize("words", BAD_MESSAGES)
@with_venue
async def test_a_bad_message_then_a_good_one(venue: Venue, words: str) -> None:
    """An unreadable message raises BadResponse in all waiting calls; the stream goes on."""
    async with AsyncSunx(venue.config(maxResponseBytes=1_000_000)) as exchange:
        balances = exchange.watch_balances()
        await anext(balances)
        await exchange.watch_balance()
        waiting = asyncio.ensure_future(anext(balances))
        also = asyncio.create_task(exchange.watch_balance())
        await asyncio.sleep(0)
        await venue.broadcast(BAD_MESSAGES[words])
        for task in (waiting, also):
            with pytest.raises(BadResponse):
                await task
        await venue.push(21)
        assert (await exchange.watch_balance())["USDT"]["total"] == 21
    assert venue.connections == 1


@with_venue
async def test_a_bad_message_without_a_waiting_call(venue: Venue) -> None:
    """The next call raises BadResponse once, unless there is a newer balance."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.broadcast("garbage")
        await venue.broadcast({"op": "ping", "ts": 1})
        await venue.wait_for_pongs(1)
        with pytest.raises(BadResponse):
            await exchange.watch_balance()
        await venue.broadcast("garbage")
        await venue.push(1)
        balances = exchange.watch_balances()
        assert (await wait_for_total(balances, 1))["USDT"]["total"] == 1
        assert (await exchange.watch_balance())["USDT"]["total"] == 1


@with_venue
async def test_read_after_a_bad_message(venue: Venue) -> None:
    """If no message follows an unreadable one, the account is read."""
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20)) as exchange:
        await exchange.watch_balance()
        venue.change(31)
        await venue.broadcast("garbage")
        with pytest.raises(BadResponse):
            await exchange.watch_balance()
        assert (await exchange.watch_balance())["USDT"]["total"] == 31
    assert venue.reads == 1


@with_venue
async def test_a_message_above_the_size_limit(venue: Venue) -> None:
    """A message above the size limit raises BadResponse, and the stream reconnects."""
    async with AsyncSunx(venue.config(maxResponseBytes=10_000)) as exchange:
        await exchange.watch_balance()
        waiting = asyncio.create_task(exchange.watch_balance())
        await asyncio.sleep(0)
        await venue.broadcast("x" * 20_000)
        with pytest.raises(BadResponse, match="larger than 10000 bytes"):
            await waiting
        await venue.wait_for_subscriptions(2)
        await venue.push(5)
        assert (await wait_for_total(_ignoring_network_errors(exchange), 5))["USDT"]["total"] == 5


@with_venue
async def test_other_topics_are_ignored(venue: Venue) -> None:
    """Notifications of other topics and late replies are ignored."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.broadcast({"op": "notify", "topic": "orders.btc-usdt", "data": []})
        await venue.broadcast({"op": "unsub", "topic": "orders", "err-code": 0})
        await venue.push(6)
        assert (await exchange.watch_balance())["USDT"]["total"] == 6


def test_unknown_fields_are_accepted() -> None:
    """Unknown fields of a message are accepted."""
    message = json.loads(payload("htx-v5-live-stream"))
    message["more"] = message["data"]["more"] = {"version": -1}
    assert isinstance(read_message(json.dumps(message).encode()), AccountUpdate)


# -- connections ----------------------------------------------------------------------------


@with_venue
async def test_a_redirect_is_refused(venue: Venue) -> None:
    """A redirect of the handshake raises BadResponse and is not followed."""

    def redirect(_: web.Request) -> web.Response:
        headers = {"Location": f"http://{venue.address}/elsewhere?x=1"}
        return web.Response(status=302, headers=headers)

    venue.handshake = redirect
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(BadResponse, match=r"redirects to http://.*/elsewhere;"):
            await exchange.watch_balance()
    assert venue.connections == 1
    assert venue.reads == 0


@pytest.mark.parametrize(("status", "error"), [(404, ExchangeNotAvailable), (200, BadResponse)])
@with_venue
async def test_no_websocket_at_the_address(
    venue: Venue, status: int, error: type[BaseError]
) -> None:
    """An address without a WebSocket raises the same exception as over REST."""
    venue.handshake = lambda _: web.Response(status=status, text="<html>")
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(error, match=f"HTTP {status}"):
            await exchange.watch_balance()


@pytest.mark.parametrize(
    "address", ["ws://api.sunx.io", "http://example.com", "ftp://127.0.0.1"], ids=str
)
def test_plain_sockets_are_for_this_machine_only(address: str) -> None:
    """Unencrypted WebSockets are accepted for loopback addresses only."""
    with pytest.raises(NotSupported):
        AsyncSunx({**KEYS, "urls": {"api": {"stream": address}}})


@asynchronous
async def test_unreachable_proxy() -> None:
    """If the proxy of the push channel cannot be reached, it is not bypassed."""
    config = {
        **KEYS,
        "wssProxy": "http://127.0.0.1:9",
        "options": {**QUICK, "streamGapTimeout": 50},
    }
    async with AsyncSunx(config) as exchange:
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9"):
            await exchange.watch_balance()


@asynchronous
async def test_socks_proxy_of_rest() -> None:
    """With a SOCKS proxy for REST, the push channel is refused instead of bypassing it."""
    async with AsyncSunx(KEYS) as exchange:
        exchange.socksProxy = "socks5://127.0.0.1:9"
        with pytest.raises(NotSupported, match="SOCKS"):
            await exchange.watch_balance()


@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_options_are_checked(value: object) -> None:
    """A timeout that is no positive number of milliseconds is refused."""
    with pytest.raises(BadRequest, match="streamGapTimeout"):
        AsyncSunx({**KEYS, "options": {"streamGapTimeout": value}})


@pytest.mark.parametrize("trusted", [True, False])
@asynchronous
async def test_certificates_are_verified(certificate: Path, trusted: bool) -> None:
    """A venue with an unknown certificate gets no login."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with Venue(tls) as venue:
        config = venue.config(streamGapTimeout=100 if not trusted else 10_000)
        if trusted:
            config["cafile"] = str(certificate)
        async with AsyncSunx(config) as exchange:
            if trusted:
                assert (await exchange.watch_balance())["USDT"]["total"] == LIVE
                await venue.drop()
                await venue.wait_for_subscriptions(2)
            else:
                with pytest.raises(NetworkError, match=r"(?i)certificate"):
                    await exchange.watch_balance()
                assert not venue.messages


# -- closing --------------------------------------------------------------------------------


@with_venue
async def test_opened_while_it_closes(venue: Venue) -> None:
    """An exchange that a task opens while another one closes it is open."""
    exchange = AsyncSunx(venue.config())
    await exchange.watch_balance()
    closing = asyncio.create_task(exchange.close())
    await asyncio.sleep(0)
    async with exchange:
        await closing
        assert (await exchange.fetch_balance())["total"]
    with pytest.raises(ExchangeClosedByUser):
        await exchange.fetch_balance()


@with_venue
async def test_close_ends_waiting_calls(venue: Venue) -> None:
    """``close()`` ends all waiting calls, and later calls raise ExchangeClosedByUser."""
    exchange = AsyncSunx(venue.config())
    await exchange.watch_balance()
    balances = exchange.watch_balances()
    await anext(balances)
    waiting = [
        asyncio.create_task(exchange.watch_balance()),
        asyncio.ensure_future(anext(balances)),
    ]
    await asyncio.sleep(0.01)
    await exchange.close()
    await exchange.close()
    for task in waiting:
        with pytest.raises(ExchangeClosedByUser):
            await task
    with pytest.raises(ExchangeClosedByUser):
        await exchange.watch_balance()
    assert exchange.stream_status().state is StreamState.OFF


@with_venue
async def test_close_while_connecting(venue: Venue) -> None:
    """``close()`` works before there is a connection and while waiting to reconnect."""
    venue.max_connections = 0
    exchange = AsyncSunx(venue.config(streamReconnectDelay=60_000))
    waiting = asyncio.create_task(exchange.watch_balance())
    await venue.wait_until(lambda venue: venue.connections == 1)
    await exchange.close()
    with pytest.raises(ExchangeClosedByUser):
        await waiting


@with_venue
async def test_close_during_the_closing_handshake(venue: Venue) -> None:
    """``close()`` works while the venue has not answered the close frame; nothing stays open."""
    exchange = AsyncSunx(venue.config())
    await exchange.watch_balance()
    venue.stop_reading()
    await venue.broadcast({"op": "close", "ts": venue.ts})
    while exchange.stream_status().state is StreamState.LIVE:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0)
    await exchange.close()
    del exchange
    gc.collect()  # a ResourceWarning would fail the test


def test_a_program_without_close() -> None:
    """A program that does not close the exchange leaves no socket and no task open."""

    async def run() -> None:
        async with Venue() as venue:
            exchange = AsyncSunx(venue.config())
            await exchange.watch_balance()

    asyncio.run(run())
    gc.collect()  # a ResourceWarning would fail the test


def test_a_second_event_loop() -> None:
    """An exchange used in another event loop connects there."""
    exchange = AsyncSunx(KEYS)

    async def run() -> None:
        async with Venue() as venue:
            config = venue.config()
            exchange.urls["api"] = config["urls"]["api"]
            exchange.options |= config["options"]
            assert (await exchange.watch_balance())["USDT"]["total"] == LIVE
            assert exchange.stream_status().state is StreamState.LIVE

    asyncio.run(run())
    asyncio.run(run())


@with_venue
async def test_status(venue: Venue) -> None:
    """The status shows the connection, the age of the figures and the latest failure."""
    async with AsyncSunx(venue.config()) as exchange:
        assert exchange.stream_status().state is StreamState.OFF
        await exchange.watch_balance()
        status = exchange.stream_status()
        assert (status.state, status.connections) == (StreamState.LIVE, 1)
        assert status.age is not None
        assert 0 <= status.age < 10
        assert status.doubted is None
        assert status.reason is None
        await venue.drop()
        await venue.wait_for_subscriptions(2)
        await venue.push(1)
        await wait_for_total(exchange.watch_balances(), 1)
        status = exchange.stream_status()
        assert status.connections == 2
        assert "connection ended" in str(status.reason)


# -- secrets --------------------------------------------------------------------------------


@with_venue
async def test_no_secret_is_seen(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    """No log, exception or traceback local has the secret or a signature."""

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        return {"err-code": 2003, "err-msg": json.dumps(message)[:150] + message["AccessKeyId"]}

    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        venue.auth_reply = answer
        venue.ts = exchange.nonce()
        with caplog.at_level(logging.DEBUG):
            await venue.drop()
            with pytest.raises(AuthenticationError) as caught:
                await exchange.watch_balance()
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    signatures = [login["Signature"] for login in venue.received("auth")]
    shown = shown.partition("sunx_adapter/exchange/asynchronous.py")[2]
    for secret in [KEYS["secret"], KEYS["apiKey"], *signatures]:
        assert secret not in str(caught.value)
        assert secret not in shown
        assert secret not in caplog.text.replace(f"'{KEYS['apiKey']}'", "")


def test_the_table_has_ccxt_exceptions_only() -> None:
    """Each rule raises a ccxt exception and has advice."""
    for rule in PUSH_ERROR_RULES:
        assert issubclass(rule.exception, ccxt.BaseError)
        assert rule.advice
