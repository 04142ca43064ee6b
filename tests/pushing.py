"""A push channel to be played with by hand: it says what a test makes it say, right or wrong.

It lives in the test's own event loop. The sandbox serves the channel as the venues do; this one
also says what no venue should.
"""

import asyncio
import contextlib
import copy
import gzip
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self

from aiohttp import WSMsgType, web

from tests.conftest import KEYS, payload

P = ParamSpec("P")

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""

QUICK = {"streamReconnectDelay": 1, "streamSnapshotTimeout": 20_000}
"""Options: reconnect at once, and do not read over REST."""


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, in which nothing may be left at the end."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def whole() -> None:
            async with asyncio.timeout(PATIENCE):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(whole())

    return run


class Venue:
    """A venue with one account, which it pushes and answers reads with.

    Args:
        tls: to be served with encryption.

    Attributes:
        data: of the account.
        ts: of the latest message, ms UTC.
        compressed: whether messages are gzip.
        answers_auth: what an ``auth`` is answered with, besides ``op`` and ``type``; by default
            success. It gets the message.
        snapshots: whether a subscription is answered with a snapshot.
        accepts: how many connections are taken until the next ones are answered with HTTP 503.
        messages: all that came over the push channel.
        reads: how many reads came.
        subscriptions: how many subscriptions came.
        connections: how many connections came.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.data: dict[str, Any] = json.loads(payload("htx-v5-live-stream"))["data"]
        self.ts = 1_782_459_963_509
        self.compressed = True
        self.answers_auth: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {"err-code": 0}
        self.answers_sub: dict[str, Any] = {"err-code": 0}
        self.snapshots = True
        self.accepts = 1_000_000
        self.handshake: Callable[[web.Request], web.StreamResponse] | None = None
        self.messages: list[dict[str, Any]] = []
        self.reads = 0
        self.subscriptions = 0
        self.connections = 0
        self.address = ""
        self._open: dict[web.WebSocketResponse, asyncio.Transport] = {}
        self._subscribed: set[web.WebSocketResponse] = set()
        self._changed = asyncio.Condition()

    def config(self, **options: Any) -> dict[str, Any]:
        """A configuration that points here."""
        return {
            **KEYS,
            "urls": {
                "api": {
                    "rest": f"http{self._encrypted}://{self.address}",
                    "stream": f"ws{self._encrypted}://{self.address}",
                }
            },
            "options": {**QUICK, **options},
        }

    @property
    def _encrypted(self) -> str:
        return "s" if self._tls else ""

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get("/ws/{variant}/notification", self._talk)
        application.router.add_get("/{path:.*}", self._read)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        # First of all, before those who are dropped come again.
        await self._site.stop()
        await self.drop()
        await self._runner.cleanup()

    # -- what it says -----------------------------------------------------------------------

    def change(self, amount: object = None) -> None:
        """Another state: the amount of the only row, and the next version; nothing is said."""
        self.data = copy.deepcopy(self.data)
        self.data["version"] = self.data.get("version", 0) + 1
        self.ts += 1
        if amount is not None:
            row = self.data["details"][0]
            row["equity"] = row["available"] = row["withdraw_available"] = str(amount)

    def notification(self, **changes: Any) -> dict[str, Any]:
        """The account as it is pushed."""
        return {
            "op": "notify",
            "topic": "account",
            "event": "snapshot",
            "uid": "1",
            "ts": self.ts,
            "data": self.data,
            **changes,
        }

    async def push(self, amount: object = None) -> None:
        """Change, and tell all who subscribed."""
        self.change(amount)
        await self.say(self.notification())

    async def say(self, message: object) -> None:
        """Tell all who subscribed: bytes and text as they are, anything else as JSON."""
        for socket in list(self._subscribed):
            await self._send(socket, message)

    async def drop(self) -> None:
        """Break all connections off."""
        for transport in list(self._open.values()):
            transport.abort()
        self._open.clear()
        self._subscribed.clear()

    def deafen(self) -> None:
        """Hear nothing more on any connection, not even that the other side hangs up."""
        for transport in self._open.values():
            transport.pause_reading()

    async def until(self, true: Callable[["Venue"], bool]) -> None:
        """Wait until that is so."""
        async with self._changed:
            await self._changed.wait_for(lambda: true(self))

    async def subscribed(self, count: int) -> None:
        """Wait for that many subscriptions in all."""
        await self.until(lambda venue: venue.subscriptions == count)

    async def answered(self, count: int) -> None:
        """Wait for that many answers to heartbeats in all."""
        await self.until(lambda venue: len(venue.heard("pong")) == count)

    # -- what it hears ----------------------------------------------------------------------

    async def _send(self, socket: web.WebSocketResponse, message: object) -> None:
        with contextlib.suppress(ConnectionError):
            if isinstance(message, str):
                await socket.send_str(message)
            elif isinstance(message, bytes):
                await socket.send_bytes(message)
            elif self.compressed:
                await socket.send_bytes(gzip.compress(json.dumps(message).encode(), mtime=0))
            else:
                await socket.send_str(json.dumps(message))

    async def _talk(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        await self._tell()
        if self.handshake is not None:
            return self.handshake(request)
        if self.connections > self.accepts:
            return web.Response(status=503, text="<html>busy</html>")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        self._open[socket] = request.transport
        try:
            async for frame in socket:
                assert frame.type is WSMsgType.TEXT
                await self._hear(socket, json.loads(frame.data))
        finally:
            self._open.pop(socket, None)
            self._subscribed.discard(socket)
        return socket

    async def _hear(self, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        self.messages.append(message)
        match message["op"]:
            case "auth":
                reply = {"op": "auth", "type": "api", "ts": self.ts, **self.answers_auth(message)}
                await self._send(socket, reply)
            case "sub":
                self.subscriptions += 1
                reply = {"op": "sub", "cid": message["cid"], "topic": message["topic"]}
                await self._send(socket, {**reply, "ts": self.ts, **self.answers_sub})
                self._subscribed.add(socket)
                if self.snapshots:
                    await self._send(socket, self.notification())
        await self._tell()

    async def _read(self, _: web.Request) -> web.Response:
        self.reads += 1
        await self._tell()
        return web.json_response({"code": 200, "data": self.data, "ts": self.ts})

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def heard(self, op: str) -> list[dict[str, Any]]:
        """The messages of that kind."""
        return [message for message in self.messages if message["op"] == op]


def with_venue(
    test: Callable[Concatenate[Venue, P], Coroutine[Any, Any, None]],
) -> Callable[P, None]:
    """Give an asynchronous test a venue as its first argument."""

    @asynchronous
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with Venue() as venue:
            await test(venue, *args, **kwargs)

    # For pytest, which takes the names of fixtures and parameters from the signature.
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = _without_first(test)  # type: ignore[attr-defined]
    return run


def _without_first(test: Callable[..., Any]) -> Any:
    signature = inspect.signature(test)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


async def take(balances: AsyncIterator[dict[str, Any]], until: object) -> dict[str, Any]:
    """Wait for the balance with that total of USDT."""
    async for balance in balances:
        if balance["USDT"]["total"] == until:
            return balance
    raise AssertionError("the balances ended")
