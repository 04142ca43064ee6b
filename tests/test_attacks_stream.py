"""Attacks on the push channel that once ended the stream, or told a secret."""

import asyncio
import contextlib
import copy
import json
import logging
import time
import traceback
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from ccxt.base.errors import AuthenticationError, BadResponse, NetworkError

from sunx_adapter import AsyncSunx
from sunx_adapter.stream import StreamState
from tests.conftest import KEYS
from tests.pushing import Venue, asynchronous, take, with_venue
from tests.test_attacks import redis_that

STRANGE: dict[str, str] = {
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


@pytest.mark.parametrize("words", STRANGE)
@with_venue
async def test_15_the_stream_goes_on(venue: Venue, words: str) -> None:
    """Whatever a message is, what is pushed after it arrives over the same connection."""
    async with AsyncSunx(venue.config()) as exchange:
        await exchange.watch_balance()
        await venue.say(STRANGE[words])
        venue.ts += 10
        await venue.push(77)
        await take(_through_bad_messages(exchange), 77)
        assert exchange.stream_status().state is StreamState.LIVE
    assert venue.connections == 1


async def _through_bad_messages(exchange: Any) -> Any:
    while True:
        try:
            yield await exchange.watch_balance()
        except BadResponse:
            continue


@asynchronous
async def test_16_a_venue_that_floods_and_does_not_read() -> None:
    """Who sends heartbeats without end and takes no answer is given up, and callers learn of it."""
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
async def test_17_what_is_older_is_never_published(venue: Venue) -> None:
    """After a message that was not understood, an older answer over REST is not taken for new."""
    async with AsyncSunx(venue.config(streamSnapshotTimeout=20, streamGapTimeout=1000)) as exchange:
        old, then = copy.deepcopy(venue.data), venue.ts
        await exchange.watch_balance()
        await venue.push(5)
        assert (await exchange.watch_balance())["USDT"]["total"] == 5
        new = venue.data
        venue.data, venue.ts = old, then - 1000
        await venue.say("garbage")
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
async def test_18_dropped_after_each_snapshot(venue: Venue) -> None:
    """A venue that drops each connection after its first message is not asked ever more often."""
    async with AsyncSunx(venue.config(streamReconnectDelay=200)) as exchange:
        await exchange.watch_balance()

        async def drop() -> None:
            while True:
                await venue.until(lambda venue: bool(venue.heard("sub")))
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
async def test_19_a_refusal_that_repeats_the_login(
    venue: Venue, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """No exception, log line or status has the signature or the whole key of a refused login."""
    venue.answers_auth = lambda message: {
        "err-code": 2003,
        "err-msg": _echoes(message["Signature"], message["AccessKeyId"])[number],
    }
    caplog.set_level(0)
    async with AsyncSunx(venue.config()) as exchange:
        venue.ts = exchange.nonce()
        with pytest.raises(AuthenticationError) as caught:
            await exchange.watch_balance()
        reason = exchange.stream_status().reason or ""
    [login] = venue.heard("auth")
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
async def test_20_a_proxy_that_refuses_does_not_tell_its_password() -> None:
    """The password of a proxy is in no exception of watch_balance(), and in no log."""

    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=407)

    server = web.Server(refuse)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    records: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    root, handler = logging.getLogger(), Kept(level=0)
    level = root.level
    root.addHandler(handler)
    root.setLevel(0)
    try:
        proxy = f"http://me:s3cret-word@127.0.0.1:{port}"
        config = {**KEYS, "wssProxy": proxy, "options": {"streamGapTimeout": 300}}
        async with AsyncSunx(config) as exchange:
            with pytest.raises(Exception, match="407") as caught:
                await exchange.watch_balance()
            told = [str(caught.value), exchange.stream_status().reason or "", *records]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        await runner.cleanup()
    assert not [text for text in told if "s3cret-word" in text]


def test_20_a_storage_s_password_is_not_told() -> None:
    """The password of a Redis URI is in no exception, whatever is wrong with the URI."""
    for uri in (
        *("redis://:s3cret-word@h:x/0", "mongodb://me:s3cret-word@h", "redis://:s3cret-word@[::1"),
        *("rediss://:s3cret-word@h:1/x", "memcached://me:s3cret-word@h"),
    ):
        config = {**KEYS, "timeout": 300, "options": {"rateLimitStorage": uri}}

        async def run(config: dict[str, Any]) -> str:
            async with AsyncSunx(config) as exchange:
                with pytest.raises(Exception) as caught:  # noqa: PT011
                    await exchange.fetch_balance()
                return repr(caught.value)

        assert "s3cret-word" not in asyncio.run(run(config))
    with redis_that(lambda connection, _: connection.close()) as uri:
        config = {**KEYS, "timeout": 300, "options": {"rateLimitStorage": uri}}
        assert "made-up-password" not in asyncio.run(run(config))
