"""The sandbox's push channel, and accounts that change."""

import asyncio
import gzip
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import aiohttp
import httpx
import pytest
from ccxt.base.errors import (
    AccountNotEnabled,
    AccountSuspended,
    AuthenticationError,
    BadResponse,
    NetworkError,
    RateLimitExceeded,
)

from sunx_adapter import AsyncHtxFutures, Sandbox, Sunx
from sunx_adapter.protocol.push import auth_message
from sunx_adapter.protocol.signing import Credentials, HmacSigner
from sunx_adapter.sandbox import DEFAULT_ACCOUNTS, Holding, SandboxAccount, balance_data
from sunx_adapter.sandbox.push import MAX_CONNECTIONS
from tests.conftest import CLASSES
from tests.pushing import asynchronous, wait_for_total

QUICK: dict[str, Any] = {"streamReconnectDelay": 1, "streamSnapshotTimeout": 20_000}
METHODS: list[Any] = ["HmacSHA256", "Ed25519"]


@pytest.fixture
def venue() -> Iterator[Sandbox]:
    """A sandbox with frequent heartbeats."""
    with Sandbox(heartbeat=0.05, seed=1) as running:
        yield running


def watching(venue: Sandbox, account: str = "main", **options: Any) -> dict[str, Any]:
    """Return a configuration that reconnects at once."""
    config = venue.config("htxfutures", account)
    return {**config, "options": {**QUICK, **options}}


@asynccontextmanager
async def raw(venue: Sandbox, login: bool = False) -> AsyncIterator[Any]:
    """Open a plain WebSocket to the sandbox, logged in or not."""
    async with aiohttp.ClientSession() as session:
        path = "/ws/v5/notification"
        async with session.ws_connect(venue.stream_url + path) as socket:
            if login:
                account = venue.account("main")
                credentials = Credentials(account.api_key, HmacSigner(account.secret or ""))
                now = round(time.time() * 1000)
                message = auth_message(credentials, host="127.0.0.1", path=path, milliseconds=now)
                await socket.send_str(message[0])
                assert (await receive(socket, "auth"))["err-code"] == 0
            yield socket


async def receive(socket: Any, op: str) -> dict[str, Any]:
    """Return the next message with this ``op``."""
    while True:
        message: dict[str, Any] = json.loads(gzip.decompress(await socket.receive_bytes()))
        if message["op"] == op:
            return message


@pytest.mark.parametrize("method", METHODS)
def test_both_venues_and_methods(venue: Sandbox, exchange_id: str, method: Any) -> None:
    """Each venue's channel accepts both signature methods, with the configurations it gives."""

    @asynchronous
    async def watch() -> None:
        config = {**venue.config(exchange_id, "main", method), "number": str}
        async with CLASSES[exchange_id, True](config) as exchange:
            pushed = await exchange.watch_balance()
            read = await exchange.fetch_balance()
            data = pushed.pop("info")["data"]
            assert read.pop("info")["data"]["equity"] == data["equity"]
            del pushed["timestamp"], pushed["datetime"], read["timestamp"], read["datetime"]
            assert pushed == read
            assert isinstance(data["updated_time"], str)
            assert isinstance(data["version"], int)
            assert all("available_margin" not in row for row in data["details"])

    watch()


@pytest.mark.parametrize("account", [a.name for a in DEFAULT_ACCOUNTS if not a.refusal])
def test_every_account(venue: Sandbox, account: str) -> None:
    """Every account, in any state, is pushed as it is read."""

    @asynchronous
    async def watch() -> None:
        async with CLASSES["sunx", True](venue.config("sunx", account)) as exchange:
            pushed, read = await exchange.watch_balance(), await exchange.fetch_balance()
            assert pushed["total"] == read["total"]
            assert pushed["used"] == read["used"]

    watch()


@pytest.mark.parametrize(
    ("account", "error"),
    [
        ("locked", AccountSuspended),
        ("unopened", AccountNotEnabled),
        ("single_asset", AccountNotEnabled),
    ],
)
def test_refused_accounts(venue: Sandbox, account: str, error: type[Exception]) -> None:
    """An account that cannot be read cannot be watched either, with the same exception."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures(watching(venue, account)) as exchange:
            with pytest.raises(error):
                await exchange.watch_balance()

    watch()


def test_wrong_secret(venue: Sandbox) -> None:
    """A wrong secret is refused."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures({**watching(venue), "secret": "wrong"}) as exchange:
            with pytest.raises(AuthenticationError, match="2003"):
                await exchange.watch_balance()

    watch()


def test_changes_are_pushed_and_read(venue: Sandbox) -> None:
    """A change is pushed, and reads give the same from then on."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures(watching(venue)) as exchange:
            balances = exchange.watch_balances()
            first = await anext(balances)
            for amount in ("1.5", "2.5"):
                venue.update("main", [Holding("USDT", cash=amount)])
                pushed = await anext(balances)
                assert pushed["total"] == {"USDT": float(amount)}
                assert (await exchange.fetch_balance())["total"] == pushed["total"]
            assert pushed["info"]["data"]["version"] == first["info"]["data"]["version"] + 2
            venue.update("main", balance_data([Holding("BTC", cash="1")], state="liquidating"))
            assert (await anext(balances))["info"]["data"]["state"] == "liquidating"

    watch()


def test_heartbeats_keep_a_connection(venue: Sandbox) -> None:
    """A client that answers heartbeats stays connected."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures(watching(venue, streamSilenceTimeout=10_000)) as exchange:
            await exchange.watch_balance()
            await asyncio.sleep(0.6)
            assert exchange.stream_status().connections == 1

    watch()


def test_a_client_without_pongs_is_disconnected(venue: Sandbox) -> None:
    """After five unanswered pings, the connection is closed."""

    @asynchronous
    async def listen() -> None:
        async with raw(venue) as socket:
            frames = [frame.type async for frame in socket]
            assert len(frames) == 5

    listen()


def test_too_many_connections(sandbox: Sandbox) -> None:
    """A user's 31st connection is refused, and accepted once another one ends."""

    @asynchronous
    async def watch() -> None:
        config = watching(sandbox, streamGapTimeout=200)
        async with AsyncHtxFutures(config) as exchange:
            async with AsyncExitStack() as others:
                for _ in range(MAX_CONNECTIONS):
                    await others.enter_async_context(raw(sandbox, login=True))
                with pytest.raises(RateLimitExceeded, match="2030"):
                    await exchange.watch_balance()
            balance = None
            while balance is None:
                try:
                    balance = await exchange.watch_balance()
                except NetworkError:
                    continue

    watch()


@pytest.mark.parametrize(
    ("login", "messages", "code"),
    [
        (False, [{"op": "sub", "topic": "account"}], 2002),
        (False, [{"op": "auth", "type": "api"}], 2040),
        (True, [{"op": "auth", "type": "api"}], 2005),
        (True, [{"op": "sub"}], 2040),
        (True, [{"op": "sub", "topic": "other"}], 2010),
        (True, [{"op": "sub", "topic": "account"}] * 2, 2014),
        (True, [{"op": "unsub", "topic": "account"}], 2012),
        (True, [{"op": "nonsense"}], 2040),
    ],
)
def test_protocol_errors(
    venue: Sandbox, login: bool, messages: list[dict[str, str]], code: int
) -> None:
    """A message against the channel's rules is refused with the venue's code."""

    @asynchronous
    async def talk() -> None:
        async with raw(venue, login) as socket:
            for message in messages:
                await socket.send_json(message)
                op = "error" if message["op"] == "nonsense" else message["op"]
                reply = await receive(socket, op)
            assert reply["err-code"] == code

    talk()


@pytest.mark.parametrize(
    "wrong", [{"Sec-WebSocket-Key": "no key"}, {"Sec-WebSocket-Version": "6"}, {"Upgrade": "h2c"}]
)
def test_invalid_handshakes(
    venue: Sandbox, caplog: pytest.LogCaptureFixture, wrong: dict[str, str]
) -> None:
    """An invalid WebSocket handshake is answered with 400 and logged as a request, not an error."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    path = "/ws/v5/notification"
    with httpx.Client(base_url=venue.url, trust_env=False) as client:
        for answer in (client.get(path, headers=headers | wrong) for _ in range(2)):
            assert (answer.status_code, answer.headers["Content-Type"]) == (400, "text/html")
    assert [(r.path, r.status, r.code) for r in venue.requests] == [(path, 400, 400)] * 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# -- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["push-reset", "push-silence"])
def test_drops(venue: Sandbox, fault: str) -> None:
    """After a broken or silent connection, the client reconnects and misses nothing."""

    @asynchronous
    async def watch() -> None:
        config = watching(venue, streamSilenceTimeout=300)
        async with AsyncHtxFutures(config) as exchange:
            balances = exchange.watch_balances()
            await anext(balances)
            venue.schedule([fault])
            venue.update("main", [Holding("USDT", cash="5")])
            assert (await wait_for_total(balances, 5))["USDT"]["total"] == 5
            assert exchange.stream_status().connections >= 2

    watch()


def test_garbage(venue: Sandbox) -> None:
    """Garbage raises BadResponse, and the lost state is read."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures(watching(venue, streamSnapshotTimeout=20)) as exchange:
            await exchange.watch_balance()
            venue.schedule(["push-garbage"])
            venue.update("main", [Holding("USDT", cash="6")])
            with pytest.raises(BadResponse):
                await exchange.watch_balance()
            assert (await exchange.watch_balance())["USDT"]["total"] == 6

    watch()


def test_out_of_order(venue: Sandbox) -> None:
    """An old state that is sent again is ignored."""

    @asynchronous
    async def watch() -> None:
        async with AsyncHtxFutures(watching(venue)) as exchange:
            balances = exchange.watch_balances()
            await anext(balances)
            venue.schedule(["push-order"])
            for amount in (7, 8):
                venue.update("main", [Holding("USDT", cash=str(amount))])
                assert (await anext(balances))["USDT"]["total"] == amount

    watch()


@pytest.mark.parametrize(
    ("fault", "error"), [("push-code=2003", AuthenticationError), ("maintenance", NetworkError)]
)
def test_refused_logins(venue: Sandbox, fault: str, error: type[Exception]) -> None:
    """A login is refused with the requested code, or for maintenance while that lasts."""

    @asynchronous
    async def watch() -> None:
        venue.set_faults([fault])
        async with AsyncHtxFutures(watching(venue, streamGapTimeout=1000)) as exchange:
            with pytest.raises(error):
                await exchange.watch_balance()

    watch()


def test_wrong_clock(venue: Sandbox) -> None:
    """A client follows a venue whose clock is wrong."""

    @asynchronous
    async def watch() -> None:
        venue.set_faults(["clock=3600"])
        async with AsyncHtxFutures(watching(venue)) as exchange:
            await exchange.watch_balance()
            assert abs(exchange.options["timeDifference"] + 3_600_000) < 5_000

    watch()


def test_many_faults_lose_no_last_state(venue: Sandbox) -> None:
    """Whatever the faults, the last state arrives."""

    @asynchronous
    async def watch() -> None:
        faults = ["push-reset@0.3", "push-garbage@0.1", "push-order@0.2"]
        venue.set_faults(faults, seed=7)
        config = watching(venue, streamSnapshotTimeout=50)
        async with AsyncHtxFutures(config) as exchange:
            for amount in range(1, 101):
                venue.update("main", [Holding("USDT", cash=str(amount))])
                total = None
                while total != amount:
                    try:
                        total = (await exchange.watch_balance())["total"].get("USDT")
                    except (BadResponse, NetworkError):
                        continue

    watch()


# -- life -----------------------------------------------------------------------------------


def consistent(data: dict[str, Any]) -> bool:
    """Return whether the amounts of a balance agree with each other."""
    for row in data["details"]:
        amounts = {name: Decimal(row[name]) for name in ("equity", "available", "profit_unreal")}
        if amounts["equity"] != amounts["available"] + amounts["profit_unreal"]:
            return False
        if not 0 <= Decimal(row["maintenance_margin"]) <= Decimal(row["initial_margin"]):
            return False
    account = Decimal(data["equity"]) - Decimal(data["initial_margin"])
    return account == Decimal(data["available_margin"])


AT_ONCE = 1e-9
"""Seconds between changes: so short that an account changes with every read."""


def read_many(account: SandboxAccount, seed: int, count: int) -> list[dict[str, Any]]:
    """Return ``count`` balances of an account that changes with each read."""
    moments = itertools.count(1_700_000_000)
    config: dict[str, Any] = {"enableRateLimit": False}
    with Sandbox([account], life=AT_ONCE, seed=seed, clock=lambda: next(moments)) as living:
        config |= {**living.config("htxfutures"), "options": {"adjustForTimeDifference": True}}
        with Sunx(config) as exchange:
            return [exchange.fetch_balance()["info"]["data"] for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_life_is_consistent(seed: int) -> None:
    """A changing account stays consistent; the same seed gives the same changes."""
    balances = read_many(DEFAULT_ACCOUNTS[0], seed, 100)
    assert all(consistent(data) for data in balances)
    amounts = [data["equity"] for data in balances]
    assert len(set(amounts)) > 90
    assert [data["equity"] for data in read_many(DEFAULT_ACCOUNTS[0], seed, 20)] == amounts[:20]
    assert [data["equity"] for data in read_many(DEFAULT_ACCOUNTS[0], 99, 20)] != amounts[:20]


def test_liquidation() -> None:
    """An account without enough margin is liquidated, and is normal again afterwards."""
    sinking = replace(
        DEFAULT_ACCOUNTS[0], balance=balance_data([Holding("USDT", "10", "-60", "8", "2")])
    )
    before, liquidating, after = read_many(sinking, 1, 3)
    assert [data["state"] for data in (before, liquidating, after)] == [
        *("normal", "liquidating", "normal"),
    ]
    assert after["details"][0]["initial_margin"] == "0"


def test_only_used_accounts_change() -> None:
    """Only accounts that are read or watched change, and only in the normal state."""
    with Sandbox(life=AT_ONCE, seed=1) as living:
        for name in ("main", "liquidating"):
            with Sunx(living.config("sunx", name)) as exchange:
                exchange.fetch_balance()
                exchange.fetch_balance()
        changed = [
            account.name
            for account, default in zip(living.accounts, DEFAULT_ACCOUNTS, strict=True)
            if account.balance != default.balance
        ]
    assert changed == ["main"]


def test_life_over_http() -> None:
    """A sandbox with life changes by itself; a read gives the state that was pushed last."""

    @asynchronous
    async def watch() -> None:
        with Sandbox(life=0.01, seed=3) as living:
            async with AsyncHtxFutures(watching(living)) as exchange:
                balances = exchange.watch_balances()
                seen = [json.dumps((await anext(balances))["total"]) for _ in range(10)]
                assert len(set(seen)) > 5

    watch()


def test_without_life_nothing_changes(venue: Sandbox) -> None:
    """By default, accounts do not change."""
    with Sunx(venue.config("sunx")) as exchange:
        assert exchange.fetch_balance()["total"] == exchange.fetch_balance()["total"]
    assert venue.accounts == DEFAULT_ACCOUNTS
