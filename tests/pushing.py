"""A push channel controlled by the test: it sends what the test wants, valid or not.

It runs in the test's own event loop. The sandbox serves the channel as the venues do; this one can
also send what no venue should.
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

TEST_TIMEOUT = 30.0
"""Seconds after which a waiting test fails."""

QUICK = {"streamReconnectDelay": 1, "streamSnapshotTimeout": 20_000}
"""Options: reconnect at once, and do not read over REST."""


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in its own event loop, and check that no task is left at the end."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def run_test() -> None:
            async with asyncio.timeout(TEST_TIMEOUT):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(run_test())

    return run


class Venue:
    """A venue with one account, for pushes and reads.

    Args:
        tls: the context to serve with TLS; plain if not given.

    Attributes:
        data: the account's data.
        ts: the time of the latest message, ms UTC.
        compressed: whether messages are gzip.
        auth_reply: gives the fields of the reply to an ``auth`` message, besides ``op`` and
            ``type``; success by default.
        sub_reply: the fields of the reply to a ``sub`` message; success by default.
        snapshots: whether a snapshot follows a subscription.
        max_connections: further connections are answered with HTTP 503.
        handshake: answers the handshake instead, if given.
        messages: all messages received.
        reads: the number of reads received.
        subscriptions: the number of subscriptions received.
        connections: the number of connections made.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.data: dict[str, Any] = json.loads(payload("htx-v5-live-stream"))["data"]
        self.ts = 1_782_459_963_509
        self.compressed = True
        self.auth_reply: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {"err-code": 0}
        self.sub_reply: dict[str, Any] = {"err-code": 0}
        self.snapshots = True
        self.max_connections = 1_000_000
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
        """Return a configuration that points here."""
        return {
            **KEYS,
            "urls": {
                "api": {
                    "rest": f"http{self._scheme_suffix}://{self.address}",
                    "stream": f"ws{self._scheme_suffix}://{self.address}",
                }
            },
            "options": {**QUICK, **options},
        }

    @property
    def _scheme_suffix(self) -> str:
        return "s" if self._tls else ""

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get("/ws/{variant}/notification", self._serve_push)
        application.router.add_get("/{path:.*}", self._serve_read)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        # Stop listening first, so that dropped clients cannot reconnect.
        await self._site.stop()
        await self.drop()
        await self._runner.cleanup()

    # -- sending ----------------------------------------------------------------------------

    def change(self, amount: object = None) -> None:
        """Set the amount of the only row and the next version, without sending anything."""
        self.data = copy.deepcopy(self.data)
        self.data["version"] = self.data.get("version", 0) + 1
        self.ts += 1
        if amount is not None:
            row = self.data["details"][0]
            row["equity"] = row["available"] = row["withdraw_available"] = str(amount)

    def notification(self, **changes: Any) -> dict[str, Any]:
        """Return the account as a push message."""
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
        """Change the account and send it to all subscribers."""
        self.change(amount)
        await self.broadcast(self.notification())

    async def broadcast(self, message: object) -> None:
        """Send to all subscribers: bytes and text unchanged, anything else as JSON."""
        for socket in list(self._subscribed):
            await self._send(socket, message)

    async def drop(self) -> None:
        """Abort all connections."""
        for transport in list(self._open.values()):
            transport.abort()
        self._open.clear()
        self._subscribed.clear()

    def stop_reading(self) -> None:
        """Stop reading from all connections, so that not even a close is noticed."""
        for transport in self._open.values():
            transport.pause_reading()

    async def wait_until(self, condition: Callable[["Venue"], bool]) -> None:
        """Wait until the condition holds."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def wait_for_subscriptions(self, count: int) -> None:
        """Wait until there were ``count`` subscriptions in all."""
        await self.wait_until(lambda venue: venue.subscriptions == count)

    async def wait_for_pongs(self, count: int) -> None:
        """Wait until there were ``count`` pongs in all."""
        await self.wait_until(lambda venue: len(venue.received("pong")) == count)

    # -- receiving --------------------------------------------------------------------------

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

    async def _serve_push(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        await self._notify()
        if self.handshake is not None:
            return self.handshake(request)
        if self.connections > self.max_connections:
            return web.Response(status=503, text="<html>busy</html>")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        self._open[socket] = request.transport
        try:
            async for frame in socket:
                assert frame.type is WSMsgType.TEXT
                await self._receive(socket, json.loads(frame.data))
        finally:
            self._open.pop(socket, None)
            self._subscribed.discard(socket)
        return socket

    async def _receive(self, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        self.messages.append(message)
        match message["op"]:
            case "auth":
                reply = {"op": "auth", "type": "api", "ts": self.ts, **self.auth_reply(message)}
                await self._send(socket, reply)
            case "sub":
                self.subscriptions += 1
                reply = {"op": "sub", "cid": message["cid"], "topic": message["topic"]}
                await self._send(socket, {**reply, "ts": self.ts, **self.sub_reply})
                self._subscribed.add(socket)
                if self.snapshots:
                    await self._send(socket, self.notification())
        await self._notify()

    async def _serve_read(self, _: web.Request) -> web.Response:
        self.reads += 1
        await self._notify()
        return web.json_response({"code": 200, "data": self.data, "ts": self.ts})

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def received(self, op: str) -> list[dict[str, Any]]:
        """Return the messages with this ``op``."""
        return [message for message in self.messages if message["op"] == op]


def with_venue(
    test: Callable[Concatenate[Venue, P], Coroutine[Any, Any, None]],
) -> Callable[P, None]:
    """Give an asynchronous test a venue as its first argument."""

    @asynchronous
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with Venue() as venue:
            await test(venue, *args, **kwargs)

    # pytest takes the names of fixtures and parameters from the signature.
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = _without_first(test)  # type: ignore[attr-defined]
    return run


def _without_first(test: Callable[..., Any]) -> Any:
    signature = inspect.signature(test)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


async def wait_for_total(balances: AsyncIterator[dict[str, Any]], total: object) -> dict[str, Any]:
    """Wait for the balance with this total of USDT."""
    async for balance in balances:
        if balance["USDT"]["total"] == total:
            return balance
    raise AssertionError("the balances ended")
