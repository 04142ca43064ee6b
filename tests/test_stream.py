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
from sunx_adapter.protocol.push import PUSH_ERROR_RULES, AccountNews, read_message
from sunx_adapter.stream import StreamState
from sunx_adapter.stream.cursor import Cursor, Cursors
from tests.conftest import CLASSES, KEYS, payload
from tests.pushing import QUICK, Venue, asynchronous, take, with_venue

LIVE = 162.331953938562004875
VECTORS = Path(__file__).parent.parent / "conformance" / "vectors"
ED25519_KEY = base64.b64encode(bytes(range(32))).decode()


# -- the balance ----------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@with_venue
async def test_first_at_once_then_each_change(
    venue: Venue, exchange_id: str, compressed: bool
) -> None:
    """The snapshot comes at once, then each change; ``info`` is the message as it came."""
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
async def test_a_push_gives_what_a_read_gives(venue: Venue, vector: dict[str, Any]) -> None:
    """Every account of the conformance vectors comes out alike by push and by read."""
    body = vector["answer"]["body"]
    answer: str = body["text"] if "text" in body else json.dumps(body["json"])
    pushed = '{"op":"notify","topic":"account",' + answer.lstrip("\ufeff \r\n\t")[1:]
    venue.snapshots = False
    config = {**venue.config(), "number": str}
    params = vector.get("params") or vector.get("config", {}).get("options", {})
    params = {name: params[name] for name in ("free", "type") if name in params}
    async with AsyncHtxFutures(config) as exchange:
        waiting = asyncio.create_task(exchange.watch_balance(params))
        await venue.subscribed(1)
        await venue.say(pushed)
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
    """One account gives one balance, whichever way it came, under every policy."""
    venue.data = json.loads(payload(name))["data"]
    async with AsyncSunx({**venue.config(), "number": Decimal}) as exchange:
        pushed = await exchange.watch_balance({"free": free})
        read = await exchange.fetch_balance({"free": free})
    assert pushed.pop("info")["data"] == read.pop("info")["data"]
    assert pushed == read


# -- who waits ------------------------------------------------------------------------------


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
    """A cancelled waiter ends alone, even the one that came first."""
    venue.snapshots = False
    async with AsyncSunx(venue.config()) as exchange:
        first = asyncio.create_task(exchange.watch_balance())
        second = asyncio.create_task(exchange.watch_balance())
        await venue.subscribed(1)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await venue.push(7)
        assert (await second)["USDT"]["total"] == 7
    assert venue.connections == 1


@with_venue
async def test_a_late_task_gets_the_newest(venue: Venue) -> None:
    """Who comes late gets the newest balance at once, and none of those before it."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        watcher = exchange.watch_balances()
        await anext(watcher)
        for amount in range(1, 51):
            await venue.push(amount)
        assert (await take(watcher, 50))["USDT"]["total"] == 50
        assert (await exchange.watch_balance())["USDT"]["total"] == 50


@with_venue
async def test_a_task_per_call_waits_for_news(venue: Venue) -> None:
    """A loop that makes a task of each call does not get the same balance twice."""
    async with AsyncSunx(venue.config()) as exchange:
        await asyncio.create_task(exchange.watch_balance())
        second = asyncio.create_task(exchange.watch_balance())
        done, _ = await asyncio.wait([second], timeout=0.05)
        assert not done
        await venue.push(5)
        assert (await second)["USDT"]["total"] == 5


@asynchronous
async def test_cursors_of_ended_tasks_do_not_add_up() -> None:
    """Any number of tasks in turn, beside one that goes on, leave at most one cursor behind."""
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
async def test_each_task_begins_with_the_newest(venue: Venue) -> None:
    """Tasks that begin later get the newest balance at once; so does each ``async for``."""
    async with AsyncSunx(venue.config()) as exchange:

        async def watch(count: int) -> list[float]:
            return [(await exchange.watch_balance())["USDT"]["total"] for _ in range(count)]

        first = asyncio.create_task(watch(2))
        await venue.subscribed(1)
        await asyncio.sleep(0.01)
        assert await asyncio.create_task(watch(1)) == [LIVE]
        assert (await anext(exchange.watch_balances()))["USDT"]["total"] == LIVE
        await venue.push(8)
        assert await first == [LIVE, 8]


@with_venue
async def test_async_for(venue: Venue) -> None:
    """``watch_balances()`` gives one balance after the other; leaving it disturbs nothing."""
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
async def test_parameters_that_cannot_be_honoured(venue: Venue, params: dict[str, Any]) -> None:
    """What cannot be served is refused before anything is sent."""
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(NotSupported):
            await exchange.watch_balance(params)
    assert venue.connections == 0


@asynchronous
async def test_missing_keys() -> None:
    """Without keys it ends before anything is sent."""
    async with AsyncSunx() as exchange:
        with pytest.raises(AuthenticationError, match="requires apiKey"):
            await exchange.watch_balance()


@pytest.mark.parametrize("make", [Sunx, HtxFutures])
def test_synchronous_classes_do_not_watch(make: Any) -> None:
    """The synchronous classes say so, as ccxt's do."""
    with make(KEYS) as exchange:
        assert not exchange.has["watchBalance"]
        with pytest.raises(NotSupported):
            exchange.watch_balance()


def test_has() -> None:
    """The asynchronous classes say that they watch."""
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
    """The login is signed for the socket's path; its signature is not percent-encoded."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
    [login] = venue.heard("auth")
    text = _signed_text(login, "/ws/v1/notification", "127.0.0.1")
    digest = hmac.new(KEYS["secret"].encode(), text.encode(), hashlib.sha256).digest()
    assert login.pop("Signature") == base64.b64encode(digest).decode()
    assert login.keys() == {
        *("op", "type", "AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp")
    }
    assert (login["type"], login["SignatureVersion"]) == ("api", "2")
    assert venue.heard("sub") == [{"op": "sub", "cid": "1", "topic": "account"}]


@with_venue
async def test_login_with_ed25519(venue: Venue) -> None:
    """The same with the other method, another path and a host that was named."""
    config = venue.config(signatureHost="api.hbdm.com", pathVariant="v5")
    config |= {"secret": None, "privateKey": ED25519_KEY}
    async with AsyncSunx(config) as exchange:
        await exchange.watch_balance()
    [login] = venue.heard("auth")
    text = _signed_text(login, "/ws/v5/notification", "api.hbdm.com")
    public_key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    public_key.verify(base64.b64decode(login["Signature"]), text.encode())
    assert login["SignatureMethod"] == "Ed25519"


FINAL_CODES: list[tuple[object, type[BaseError]]] = [
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
PASSING_CODES: list[tuple[object, type[BaseError]]] = [
    (2004, RateLimitExceeded),
    (2030, RateLimitExceeded),
    (2005, ExchangeNotAvailable),
    (2012, ExchangeNotAvailable),
    (2014, ExchangeNotAvailable),
    (1006, OnMaintenance),
]


@pytest.mark.parametrize("op", ["auth", "sub", "error"])
@pytest.mark.parametrize(("code", "error"), FINAL_CODES, ids=str)
@with_venue
async def test_final_refusals(venue: Venue, op: str, code: object, error: type[BaseError]) -> None:
    """A refusal that will not go away is told at once, to all, and not tried again by itself."""
    refused = {"err-code": code, "err-msg": "no"}
    if op == "auth":
        venue.answers_auth = lambda _: refused
    else:
        venue.answers_sub = refused if op == "sub" else {"op": "error", **refused}
    # The venue's clock and ours agree, so the time is not to blame.
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
    """A code that nobody knows is final; out of nowhere it may be gone on the next connection."""
    refused = {"err-code": 9999, "err-msg": "no"}
    venue.answers_sub = refused if op == "sub" else venue.answers_sub
    venue.answers_auth = lambda _: refused if op == "auth" else {"err-code": 0}
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(ExchangeError, match="9999 no"):
            await exchange.watch_balance()
    assert venue.connections == 1


@pytest.mark.parametrize("op", ["auth", "error"])
@pytest.mark.parametrize(("code", "error"), PASSING_CODES, ids=str)
@with_venue
async def test_passing_refusals(
    venue: Venue, op: str, code: int, error: type[NetworkError]
) -> None:
    """A refusal that may go away is tried again; who waits too long learns of it."""
    refused = {"err-code": code, "err-msg": "no"}
    if op == "auth":
        venue.answers_auth = lambda _: refused
    else:
        venue.answers_sub = {"op": "error", **refused}
    venue.snapshots = False
    async with AsyncSunx(venue.config(streamGapTimeout=100)) as exchange:
        with pytest.raises(error, match=str(code)):
            await exchange.watch_balance()
        venue.answers_auth = lambda _: {"err-code": 0}
        venue.answers_sub = {"err-code": 0}
        venue.snapshots = True
        balance = None
        while balance is None:
            try:
                balance = await exchange.watch_balance()
            except NetworkError:
                continue
    assert venue.connections > 1


def test_every_code_is_in_the_table() -> None:
    """Each code of the table means what is tested here."""
    tested = {str(code): error for code, error in [*FINAL_CODES, *PASSING_CODES]}
    for rule in PUSH_ERROR_RULES:
        assert all(tested[code] is rule.exception for code in rule.codes)


@with_venue
async def test_a_refused_key_is_not_tried_again(venue: Venue) -> None:
    """The same key is refused without a connection; another one is tried."""
    venue.answers_auth = lambda message: {
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
    """A key that is changed while it goes on is used from then on, and the old one no more."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        exchange.apiKey = "another"
        await exchange.watch_balance()
        await venue.push(3)
        assert (await exchange.watch_balance())["USDT"]["total"] == 3
    assert [login["AccessKeyId"] for login in venue.heard("auth")] == [KEYS["apiKey"], "another"]


@pytest.mark.parametrize("code", [12001, 2003])
@with_venue
async def test_a_refused_time_is_corrected_once(venue: Venue, code: int) -> None:
    """If the venue's clock is far off ours, the login is tried once more by its time."""
    first = []

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        first.append(1)
        return {"err-code": code if len(first) == 1 else 0}

    venue.answers_auth = answer
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        assert abs(exchange.nonce() - venue.ts) < 60_000
    logins = venue.heard("auth")
    assert len(logins) == 2
    assert logins[1]["Timestamp"].startswith("2026-06-26T")


@with_venue
async def test_a_time_that_stays_refused(venue: Venue) -> None:
    """A clock is corrected once, and then the refusal stands."""
    venue.answers_auth = lambda _: {"err-code": 12001}
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(InvalidNonce):
            await exchange.watch_balance()
    assert venue.connections == 2


# -- drops ----------------------------------------------------------------------------------


@pytest.mark.long("drops a push connection 500 times")
@with_venue
async def test_five_hundred_drops_lose_no_last_state(venue: Venue) -> None:
    """However often the connection drops, the last state before or during a gap arrives."""
    async with AsyncSunx(venue.config()) as exchange:
        balances = exchange.watch_balances()
        await anext(balances)
        for amount in range(1, 501):
            # Some states are told just before the drop, some never.
            venue.change(amount)
            if amount % 2:
                await venue.say(venue.notification())
            await venue.drop()
            assert (await take(balances, amount))["USDT"]["total"] == amount
            await venue.subscribed(amount + 1)
        await venue.push(-1)
        await take(balances, -1)
        assert exchange.stream_status().connections == 501
    assert venue.reads == 0


@with_venue
async def test_waiters_notice_only_a_delay(venue: Venue) -> None:
    """A drop in which nothing changed gives no balance and no exception."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        waiting = asyncio.create_task(exchange.watch_balance())
        await venue.drop()
        await venue.subscribed(2)
        await venue.push(9)
        assert (await waiting)["USDT"]["total"] == 9


@with_venue
async def test_a_long_gap_is_a_network_error(venue: Venue) -> None:
    """Who waits longer than the gap timeout gets a NetworkError; the stream goes on trying."""
    async with AsyncSunx(venue.config(streamGapTimeout=100)) as exchange:
        await exchange.watch_balance()
        venue.accepts = venue.connections
        await venue.drop()
        with pytest.raises(NetworkError, match=r"streamGapTimeout.*503"):
            await exchange.watch_balance()
        status = exchange.stream_status()
        assert status.state in {StreamState.WAITING, StreamState.CONNECTING}
        assert status.doubted is not None
        assert status.doubted >= 0.1
        venue.change(4)
        venue.accepts = 1_000_000
        assert (await take(_retrying(exchange), 4))["USDT"]["total"] == 4
        assert exchange.stream_status().doubted is None


async def _retrying(exchange: Any) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            yield await exchange.watch_balance()
        except NetworkError:
            continue


@pytest.mark.parametrize("words", ["close", "error", "silence"])
@with_venue
async def test_what_counts_as_a_drop(venue: Venue, words: str) -> None:
    """An announced close, an internal error and silence are mended like any drop."""
    async with AsyncSunx(venue.config(streamSilenceTimeout=100)) as exchange:
        await exchange.watch_balance()
        if words != "silence":
            await venue.say({"op": words, "ts": venue.ts, "err-msg": "internal"})
        await venue.subscribed(2)
        venue.change(2)
        assert (await take(exchange.watch_balances(), 2))["USDT"]["total"] == 2


@pytest.mark.parametrize("ts", ["1492420473058", 1492420473058])
@with_venue
async def test_heartbeats_are_answered(venue: Venue, ts: object) -> None:
    """Each ping gets a pong with its own ts, and keeps the connection from being silent."""
    async with AsyncSunx(venue.config(streamSilenceTimeout=1000)) as exchange:
        await exchange.watch_balance()
        for count in range(1, 12):
            await venue.say({"op": "ping", "ts": ts})
            await venue.answered(count)
            await asyncio.sleep(0.1)
    assert venue.heard("pong") == [{"op": "pong", "ts": ts}] * 11
    assert venue.connections == 1


@with_venue
async def test_no_snapshot_is_read(venue: Venue) -> None:
    """If no snapshot follows a subscription, the account is read."""
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
async def test_versions_that_begin_anew(venue: Venue) -> None:
    """A venue that counts its versions anew is believed after a read, not ignored for ever."""
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
async def test_out_of_order_is_dropped(venue: Venue, older: str) -> None:
    """A message whose version or time goes back is not believed."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        old = copy.deepcopy(venue.notification())
        old["data"]["details"][0]["equity"] = "13"
        old["data"]["version"] += -1 if older == "version" else 1
        old["ts"] += -1 if older == "ts" else 1
        await venue.say(old)
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
    """What cannot be understood is a BadResponse to all who wait; the stream goes on."""
    async with AsyncSunx(venue.config(maxResponseBytes=1_000_000)) as exchange:
        balances = exchange.watch_balances()
        await anext(balances)
        await exchange.watch_balance()
        waiting = asyncio.ensure_future(anext(balances))
        also = asyncio.create_task(exchange.watch_balance())
        await asyncio.sleep(0)
        await venue.say(BAD_MESSAGES[words])
        for task in (waiting, also):
            with pytest.raises(BadResponse):
                await task
        await venue.push(21)
        assert (await exchange.watch_balance())["USDT"]["total"] == 21
    assert venue.connections == 1


@with_venue
async def test_a_bad_message_while_nobody_waits(venue: Venue) -> None:
    """The next who would have to wait is told, once; whoever finds a newer balance is not."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.say("garbage")
        await venue.say({"op": "ping", "ts": 1})
        await venue.answered(1)
        with pytest.raises(BadResponse):
            await exchange.watch_balance()
        await venue.say("garbage")
        await venue.push(1)
        balances = exchange.watch_balances()
        assert (await take(balances, 1))["USDT"]["total"] == 1
        assert (await exchange.watch_balance())["USDT"]["total"] == 1


@with_venue
async def test_what_a_bad_message_hid_is_read(venue: Venue) -> None:
    """After a message that could not be understood, the account is read if none follows."""
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20)) as exchange:
        await exchange.watch_balance()
        venue.change(31)
        await venue.say("garbage")
        with pytest.raises(BadResponse):
            await exchange.watch_balance()
        assert (await exchange.watch_balance())["USDT"]["total"] == 31
    assert venue.reads == 1


@with_venue
async def test_a_message_larger_than_the_cap(venue: Venue) -> None:
    """A message over the cap is refused before it is taken in, and the connection made anew."""
    async with AsyncSunx(venue.config(maxResponseBytes=10_000)) as exchange:
        await exchange.watch_balance()
        waiting = asyncio.create_task(exchange.watch_balance())
        await asyncio.sleep(0)
        await venue.say("x" * 20_000)
        with pytest.raises(BadResponse, match="larger than 10000 bytes"):
            await waiting
        await venue.subscribed(2)
        await venue.push(5)
        assert (await take(_retrying(exchange), 5))["USDT"]["total"] == 5


@with_venue
async def test_other_topics_are_no_news(venue: Venue) -> None:
    """A notification about something else, and late answers, are passed over."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.say({"op": "notify", "topic": "orders.btc-usdt", "data": []})
        await venue.say({"op": "unsub", "topic": "orders", "err-code": 0})
        await venue.push(6)
        assert (await exchange.watch_balance())["USDT"]["total"] == 6


def test_unknown_fields_are_accepted() -> None:
    """A message may have more fields than are known."""
    message = json.loads(payload("htx-v5-live-stream"))
    message["more"] = message["data"]["more"] = {"version": -1}
    assert isinstance(read_message(json.dumps(message).encode()), AccountNews)


# -- the connection -------------------------------------------------------------------------


@with_venue
async def test_a_redirect_is_refused(venue: Venue) -> None:
    """A redirect of the handshake is never followed: the login would go elsewhere."""

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
async def test_no_websocket_there(venue: Venue, status: int, error: type[BaseError]) -> None:
    """An address that serves something else is told at once, as over REST."""
    venue.handshake = lambda _: web.Response(status=status, text="<html>")
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(error, match=f"HTTP {status}"):
            await exchange.watch_balance()


@pytest.mark.parametrize(
    "address", ["ws://api.sunx.io", "http://example.com", "ftp://127.0.0.1"], ids=str
)
def test_plain_sockets_are_for_this_machine_only(address: str) -> None:
    """Without encryption it goes to this machine only."""
    with pytest.raises(NotSupported):
        AsyncSunx({**KEYS, "urls": {"api": {"stream": address}}})


@asynchronous
async def test_a_proxy_that_cannot_be_reached() -> None:
    """A proxy for the push channel is used, and no way round it."""
    config = {
        **KEYS,
        "wssProxy": "http://127.0.0.1:9",
        "options": {**QUICK, "streamGapTimeout": 50},
    }
    async with AsyncSunx(config) as exchange:
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9"):
            await exchange.watch_balance()


@asynchronous
async def test_rest_proxy_counts_for_the_push_channel() -> None:
    """An exchange that reads through a SOCKS proxy does not push round it."""
    async with AsyncSunx(KEYS) as exchange:
        exchange.socksProxy = "socks5://127.0.0.1:9"
        with pytest.raises(NotSupported, match="SOCKS"):
            await exchange.watch_balance()


@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_options_are_checked(value: object) -> None:
    """A timeout that is no number of milliseconds above 0 is refused."""
    with pytest.raises(BadRequest, match="streamGapTimeout"):
        AsyncSunx({**KEYS, "options": {"streamGapTimeout": value}})


@pytest.mark.parametrize("trusted", [True, False])
@asynchronous
async def test_certificates_are_verified(certificate: Path, trusted: bool) -> None:
    """A venue whose certificate nobody vouches for gets no login."""
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
                await venue.subscribed(2)
            else:
                with pytest.raises(NetworkError, match=r"(?i)certificate"):
                    await exchange.watch_balance()
                assert not venue.messages


# -- the end --------------------------------------------------------------------------------


@with_venue
async def test_close_ends_those_who_wait(venue: Venue) -> None:
    """``close()`` ends every waiter, and the exchange is of no use afterwards."""
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
    """It can be closed before there is a connection, or while it waits for the next try."""
    venue.accepts = 0
    exchange = AsyncSunx(venue.config(streamReconnectDelay=60_000))
    waiting = asyncio.create_task(exchange.watch_balance())
    await venue.until(lambda venue: venue.connections == 1)
    await exchange.close()
    with pytest.raises(ExchangeClosedByUser):
        await waiting


@with_venue
async def test_close_while_saying_goodbye(venue: Venue) -> None:
    """It can be closed while the venue still owes it a goodbye; nothing is left open."""
    exchange = AsyncSunx(venue.config())
    await exchange.watch_balance()
    venue.deafen()
    await venue.say({"op": "close", "ts": venue.ts})
    while exchange.stream_status().state is StreamState.LIVE:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    await exchange.close()
    del exchange
    gc.collect()  # a ResourceWarning would fail the test


def test_without_close_nothing_is_left() -> None:
    """A program that ends without closing leaves no socket and no task behind."""

    async def run() -> None:
        async with Venue() as venue:
            exchange = AsyncSunx(venue.config())
            await exchange.watch_balance()

    asyncio.run(run())
    gc.collect()  # a ResourceWarning would fail the test


def test_a_second_event_loop() -> None:
    """An exchange that is used in another event loop connects there."""
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
    """The status tells of the connection, the age of the figures and the latest failure."""
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
        await venue.subscribed(2)
        await venue.push(1)
        await take(exchange.watch_balances(), 1)
        status = exchange.stream_status()
        assert status.connections == 2
        assert "connection ended" in str(status.reason)


# -- secrets --------------------------------------------------------------------------------


@with_venue
async def test_no_secret_is_seen(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    """Neither logs nor exceptions nor their tracebacks' locals have the secret or a signature."""

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        return {"err-code": 2003, "err-msg": json.dumps(message)[:150] + message["AccessKeyId"]}

    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        venue.answers_auth = answer
        venue.ts = exchange.nonce()
        with caplog.at_level(logging.DEBUG):
            await venue.drop()
            with pytest.raises(AuthenticationError) as caught:
                await exchange.watch_balance()
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    signatures = [login["Signature"] for login in venue.heard("auth")]
    shown = shown.partition("sunx_adapter/exchange/asynchronous.py")[2]
    for secret in [KEYS["secret"], KEYS["apiKey"], *signatures]:
        assert secret not in str(caught.value)
        assert secret not in shown
        assert secret not in caplog.text.replace(f"'{KEYS['apiKey']}'", "")


def test_the_table_has_ccxt_exceptions_only() -> None:
    """Each rule raises one of ccxt's exceptions and says what to do."""
    for rule in PUSH_ERROR_RULES:
        assert issubclass(rule.exception, ccxt.BaseError)
        assert rule.advice
