"""Attacks on the push channel that once ended the stream or revealed a secret."""

import asyncio
import contextlib
import copy
import json
import logging
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from ccxt.base.errors import (
    AuthenticationError,
    BadResponse,
    BaseError,
    NetworkError,
    NotSupported,
)

from sunx_adapter import AsyncSunx, Sandbox
from sunx_adapter.stream import StreamState
from tests.conftest import KEYS, frames_of
from tests.pushing import Venue, asynchronous, wait_for_total, with_venue
from tests.test_attacks import fake_redis

ODD_MESSAGES: dict[str, str] = {
    "a ping with an exponent": '{"op":"ping","ts":1.7e12}',
    "a ping with a huge exponent": '{"op":"ping","ts":1e1000000}',
    "a ping with a long number": f'{{"op":"ping","ts":{"9" * 5000}}}',
    "a ping with an object": '{"op":"ping","ts":{"a":[1]}}',
    "a ping without a time": '{"op":"ping"}',
    "a reply with a huge time": '{"op":"unsub","err-code":0,"ts":1e1000000}',
    "a reply with a strange code": '{"op":"notify","topic":"x","err-code":{"a":1}}',
    **{
        f"a ping nested {depth} deep": '{"op":"ping","ts":' + "[" * depth + "]" * depth + "}"
        for depth in (880, 930, 960, 985, 999, 5000)
    },
    **{
        f"an account nested {depth} deep": '{"op":"notify","topic":"account","ts":1,"x":'
        + "[" * depth + "]" * depth + ',"data":{"details":[]}}'
        for depth in (880, 930, 985, 999)
    },
    **{
        f"an account with objects {depth} deep": '{"op":"notify","topic":"account","ts":1,"x":'
        + '{"a":' * depth + "1" + "}" * depth + ',"data":{"details":[]}}'
        for depth in (880, 985, 999)
    },
    **{f"an op nested {depth} deep": '{"op":' + "[" * depth + "]" * depth + "}"
       for depth in (880, 985, 999)},
}  # fmt: skip


@pytest.mark.parametrize("words", ODD_MESSAGES)
@with_venue
async def test_odd_messages_do_not_end_the_stream(venue: Venue, words: str) -> None:
    """After any message, later messages arrive over the same connection."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.broadcast(ODD_MESSAGES[words])
        venue.ts += 10
        await venue.push(77)
        await wait_for_total(_ignoring_bad_messages(exchange), 77)
        assert exchange.stream_status().state is StreamState.LIVE
    assert venue.connections == 1


async def _ignoring_bad_messages(exchange: Any) -> Any:
    while True:
        try:
            yield await exchange.watch_balance()
        except BadResponse:
            continue


@asynchronous
async def test_venue_that_floods_and_does_not_read() -> None:
    """A venue that floods pings and reads nothing is dropped, and callers get NetworkError."""
    ping = json.dumps({"op": "ping", "ts": "1" * 60, "more": "x" * 60_000})

    async def talk(request: web.Request) -> web.StreamResponse:
        channel = web.WebSocketResponse(max_msg_size=0)
        await channel.prepare(request)
        for op in ("auth", "sub"):
            await channel.receive()
            await channel.send_json({"op": op, "type": "api", "err-code": 0, "ts": 1})
        assert request.transport is not None
        request.transport.pause_reading()
        try:
            while True:
                await channel.send_str(ping)
        except ConnectionError:
            return channel

    application = web.Application()
    application.router.add_get("/ws/v1/notification", talk)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    options = {
        "streamSilenceTimeout": 500,
        "streamGapTimeout": 1500,
        "streamSnapshotTimeout": 60_000,
    }
    config = {
        **KEYS,
        "urls": {"api": {"stream": f"ws://{host}:{port}"}},
        "options": options,
    }
    exchange = AsyncSunx(config)
    with pytest.raises(NetworkError, match="streamGapTimeout"):
        await asyncio.wait_for(exchange.watch_balance(), 10)
    start = time.monotonic()
    await exchange.close()
    assert time.monotonic() - start < 3
    await runner.cleanup()


@with_venue
async def test_older_rest_answer_after_a_bad_message(venue: Venue) -> None:
    """After an unreadable message, an older REST answer is not published."""
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20, streamGapTimeout=1000)) as exchange:
        old, then = copy.deepcopy(venue.data), venue.ts
        await exchange.watch_balance()
        await venue.push(5)
        assert (await exchange.watch_balance())["USDT"]["total"] == 5
        new = venue.data
        venue.data, venue.ts = old, then - 1000
        await venue.broadcast("garbage")
        with pytest.raises(BadResponse):
            await exchange.watch_balance()
        with pytest.raises(NetworkError):
            await exchange.watch_balance()
        assert venue.reads > 0
        venue.data, venue.ts = new, then + 1000
        venue.change(6)
        async with asyncio.timeout(10):
            total = None
            while total is None:  # a busy machine may need longer than the gap timeout
                with contextlib.suppress(NetworkError):
                    total = (await exchange.watch_balance())["USDT"]["total"]
        assert total == 6


@with_venue
async def test_connections_dropped_after_each_snapshot(venue: Venue) -> None:
    """Reconnecting backs off if the venue drops each connection after the first message."""
    async with AsyncSunx(venue.config(streamReconnectDelay=200)) as exchange:
        await exchange.watch_balance()

        async def drop() -> None:
            while True:
                await venue.wait_until(lambda venue: bool(venue.received("sub")))
                await venue.drop()
                await asyncio.sleep(0.01)

        dropping = asyncio.create_task(drop())
        await asyncio.sleep(4)
        dropping.cancel()
    # Doubling from 0.2 s: at most 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s.
    assert 2 <= venue.connections <= 10


def _echoes(signature: str, key: str) -> list[str]:
    return [
        f"got {signature} for {key}",
        json.dumps({"Signature": signature, "AccessKeyId": key}),
        f"got {quote(signature, safe='')}",
        f"got {signature.rstrip('=')}",
        "got " + signature.replace("/", "\\/"),
    ]


@pytest.mark.parametrize("number", range(5))
@with_venue
async def test_refusal_that_repeats_the_login(
    venue: Venue, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """No exception, log record or status has the signature or full key of a refused login."""
    venue.auth_reply = lambda message: {
        "err-code": 2003,
        "err-msg": _echoes(message["Signature"], message["AccessKeyId"])[number],
    }
    caplog.set_level(0)
    async with AsyncSunx(venue.config()) as exchange:
        venue.ts = exchange.nonce()
        with pytest.raises(AuthenticationError) as caught:
            await exchange.watch_balance()
        reason = exchange.stream_status().reason or ""
    [login] = venue.received("auth")
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = "".join(frames.format()).partition("sunx_adapter/exchange")[2]
    log = "".join(record.getMessage() for record in caplog.records if record.name != "asyncio")
    for text in (str(caught.value), reason, log, inside):
        for spelled in _echoes(login["Signature"], "x" * 20):
            assert spelled.removeprefix("got ")[:40] not in text
    for text in (str(caught.value), reason, log):
        assert KEYS["apiKey"] not in text
    assert "2003" in reason


@asynchronous
async def test_proxy_password_is_hidden() -> None:
    """A proxy's password is in no exception of ``watch_balance()`` and in no log."""

    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=407)

    server = web.Server(refuse)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    records: list[str] = []

    class RecordingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    root, handler = logging.getLogger(), RecordingHandler(level=0)
    level = root.level
    root.addHandler(handler)
    root.setLevel(0)
    try:
        proxy = f"http://me:s3cret-word@127.0.0.1:{port}"
        config = {**KEYS, "wssProxy": proxy, "options": {"streamGapTimeout": 300}}
        async with AsyncSunx(config) as exchange:
            with pytest.raises(Exception, match="407") as caught:
                await exchange.watch_balance()
            texts = [str(caught.value), exchange.stream_status().reason or "", *records]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        await runner.cleanup()
    assert not [text for text in texts if "s3cret-word" in text]


def test_redis_password_is_hidden() -> None:
    """The password of a Redis URI is in no exception, even if the URI is invalid."""
    for uri in (
        *("redis://:s3cret-word@h:x/0", "mongodb://me:s3cret-word@h", "redis://:s3cret-word@[::1"),
        *("rediss://:s3cret-word@h:1/x", "memcached://me:s3cret-word@h"),
    ):
        config = {**KEYS, "timeout": 300, "options": {"rateLimitStorage": uri}}

        async def run(config: dict[str, Any]) -> str:
            with pytest.raises(Exception) as caught:  # noqa: PT011
                async with AsyncSunx(config) as exchange:
                    await exchange.fetch_balance()
            return repr(caught.value) + frames_of(caught.value)

        assert "s3cret-word" not in asyncio.run(run(config))
    with fake_redis(lambda connection, _: connection.close()) as uri:
        config = {**KEYS, "timeout": 300, "options": {"rateLimitStorage": uri}}
        assert "made-up-password" not in asyncio.run(run(config))


def stream_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks of streams, and none of the venue's."""
    named = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    return [task for task, name in named.items() if name.startswith("AccountStream")]


@with_venue
async def test_cancelled_stream(venue: Venue) -> None:
    """After a program cancelled all tasks, the next call opens a new stream."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        assert stream_tasks()
        for task in stream_tasks():
            task.cancel()
        await asyncio.wait(stream_tasks())
        venue.change(7)
        assert (await exchange.watch_balance())["USDT"]["total"] == 7
        assert venue.connections == 2


@pytest.mark.parametrize("ahead_ms", [3_600_000, 365 * 86_400_000])
@with_venue
async def test_time_from_the_future(venue: Venue, ahead_ms: int) -> None:
    """A message with a time in the future does not hide the later ones."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        venue.ts = int(time.time() * 1000)
        present = venue.ts
        venue.ts += ahead_ms
        await venue.push(5)
        assert (await exchange.watch_balance())["USDT"]["total"] == 5
        venue.ts = present + 10
        await venue.push(6)
        assert (await exchange.watch_balance())["USDT"]["total"] == 6
        assert venue.reads == 0


@pytest.mark.parametrize("status", [401, 407])
@with_venue
async def test_handshake_refused_once(venue: Venue, status: int) -> None:
    """A proxy or gateway that refuses a handshake does not end watching with that key."""
    venue.handshake = lambda _: web.Response(status=status)
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(BaseError, match=f"HTTP {status}"):
            await exchange.watch_balance()
        venue.handshake = None
        assert (await exchange.watch_balance())["USDT"]["total"]


def test_clock_that_cannot_be_measured_at_first() -> None:
    """A failed measurement of the clock is repeated; it does not end the stream."""

    async def run(config: dict[str, Any]) -> None:
        async with AsyncSunx(config) as exchange:
            assert (await exchange.watch_balance())["total"]
            assert exchange.stream_status().state is StreamState.LIVE

    with Sandbox() as sandbox:
        sandbox.schedule(["garbage", "html=500"])
        config = sandbox.config("sunx")
        config["options"] = {"adjustForTimeDifference": True, "maxRetriesOnFailure": 0}
        asyncio.run(run(config))
        assert sandbox.scheduled == ()


@pytest.mark.parametrize("location", ["http://[::bad", "", "http://u:p@127.0.0.1:1/x?Signature=a"])
@with_venue
async def test_odd_redirects(venue: Venue, location: str) -> None:
    """A redirect anywhere is a BadResponse."""
    venue.handshake = lambda _: web.Response(status=302, headers={"Location": location})
    async with AsyncSunx(venue.config()) as exchange:
        with pytest.raises(BadResponse, match="HTTP 302 redirects to"):
            await exchange.watch_balance()


@pytest.mark.parametrize("replaced_by", ["a refusal", "close and open"])
@with_venue
async def test_a_later_stream_is_not_older(venue: Venue, replaced_by: str) -> None:
    """If a venue lags behind, no older balance follows a newer one."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        older = venue.data, venue.ts
        venue.ts += 60_000
        await venue.push(500)
        assert (await exchange.watch_balance())["USDT"]["total"] == 500
        if replaced_by == "a refusal":
            venue.sub_reply = {"err-code": 2010, "err-msg": "no"}
            await venue.drop()
            with pytest.raises(BaseError, match="2010"):
                await exchange.watch_balance()
            venue.sub_reply = {"err-code": 0}
        else:
            await exchange.close()
            exchange.open()
        newer = venue.data, venue.ts
        venue.data, venue.ts = older
        waiting = asyncio.ensure_future(exchange.watch_balance())
        await venue.wait_for_subscriptions(2 if replaced_by == "close and open" else 3)
        assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
        venue.data, venue.ts = newer
        await venue.push(600)
        assert (await waiting)["USDT"]["total"] == 600


@with_venue
async def test_a_changed_info_is_not_news(venue: Venue) -> None:
    """If a caller changes ``info``, the same account is not published again."""
    async with AsyncSunx(venue.config()) as exchange:
        balance = await exchange.watch_balance()
        balance["info"]["data"]["note"] = "the caller's"
        await venue.drop()
        waiting = asyncio.ensure_future(exchange.watch_balance())
        assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
        await venue.wait_for_subscriptions(2)
        await venue.push(5)
        assert (await waiting)["USDT"]["total"] == 5


@with_venue
async def test_keys_that_change_while_another_task_waits(venue: Venue) -> None:
    """A waiting call goes on with the new keys."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        waiting = asyncio.ensure_future(exchange.watch_balance())
        await asyncio.sleep(0)
        exchange.apiKey = "another"
        await exchange.watch_balance()
        await venue.push(5)
        assert (await waiting)["total"]


@with_venue
async def test_loops_with_wait_for_do_not_disturb_each_other(venue: Venue) -> None:
    """A slow loop over ``wait_for(create_task(watch_balance()))`` gets the newest balance, too."""
    async with AsyncSunx(venue.config()) as exchange:

        async def total() -> float:
            task = asyncio.create_task(exchange.watch_balance())
            return float((await asyncio.wait_for(task, 10))["USDT"]["total"])

        async def loop(ready: asyncio.Event, free: asyncio.Event) -> float:
            await total()
            ready.set()
            await free.wait()
            return await total()

        events = [asyncio.Event() for _ in range(4)]
        slow = asyncio.create_task(loop(events[0], events[1]))
        quick = asyncio.create_task(loop(events[2], events[3]))
        await asyncio.gather(events[0].wait(), events[2].wait())
        events[3].set()
        await venue.push(1000)
        assert await quick == 1000
        events[1].set()
        assert await slow == 1000


@with_venue
async def test_a_flood_leaves_other_tasks_their_turn(venue: Venue) -> None:
    """During a flood of unreadable messages, other tasks still run."""
    venue.compressed = False
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for _ in range(2000):
            await venue.broadcast("x")
        before = turns
        await venue.push(5)
        await wait_for_total(_ignoring_bad_messages(exchange), 5)
        counting.cancel()
        assert turns - before > 100


def test_two_event_loops_at_once() -> None:
    """Watching in a second event loop at the same time raises NotSupported."""
    ready, done = threading.Event(), threading.Event()

    @asynchronous
    async def first(exchange: AsyncSunx) -> None:
        await exchange.watch_balance()
        ready.set()
        await asyncio.to_thread(done.wait)
        await exchange.close()

    @asynchronous
    async def second(exchange: AsyncSunx) -> None:
        with pytest.raises(NotSupported, match="one for each event loop"):
            await exchange.watch_balance()

    with Sandbox() as sandbox, ThreadPoolExecutor() as threads:
        exchange = AsyncSunx(sandbox.config("sunx"))
        watching = threads.submit(first, exchange)
        try:
            assert ready.wait(30)
            second(exchange)
        finally:
            done.set()
        watching.result()
