"""The sandbox's push channel: login, subscription, heartbeat and account messages."""

import asyncio
import contextlib
import gzip
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from sunx_adapter.sandbox.accounts import AccountBook, SandboxAccount
from sunx_adapter.sandbox.answers import HttpRequest, Refused
from sunx_adapter.sandbox.balances import with_rows
from sunx_adapter.sandbox.delivery import Delivery, reset, whole
from sunx_adapter.sandbox.fault_table import PUSH_ACCOUNT, PUSH_LOGIN
from sunx_adapter.sandbox.faults import FaultPlan
from sunx_adapter.sandbox.responder import check_multi_assets
from sunx_adapter.sandbox.signatures import authenticate, canonical_query
from sunx_adapter.venue import PATH_VARIANTS

STREAM_VARIANTS: Final = {variant.stream: name for name, variant in PATH_VARIANTS.items()}
MAX_CONNECTIONS: Final = 30
"""The venues' limit of connections per user."""

HEARTBEAT_SECONDS: Final = 5.0
MAX_UNANSWERED: Final = 5

_TOPIC: Final = "account"
_TIMES: Final = ("created_time", "updated_time")
_SIGNED_PARAMETERS: Final = (
    "AccessKeyId",
    "SignatureMethod",
    "SignatureVersion",
    "Timestamp",
    "Signature",
)

_logger = logging.getLogger("sunx_adapter.sandbox")


@dataclass(eq=False)
class _Connection:
    """A client; ``outgoing`` are the messages to send, ``latest`` is the latest account message."""

    socket: web.WebSocketResponse
    handshake: HttpRequest
    account: SandboxAccount | None = None
    subscribed: bool = False
    unanswered: int = 0
    latest: bytes = b""
    outgoing: "asyncio.Queue[Delivery]" = field(default_factory=asyncio.Queue)

    def send(self, content: Mapping[str, object]) -> None:
        self.outgoing.put_nowait(whole(_packed(content)))

    def subscribe(self, topic: object, wanted: bool) -> None:
        """Begin or end a subscription."""
        if self.account is None:
            raise Refused(2002, "Authentication required")
        if not topic:
            raise Refused(2040, "Missing required parameter: topic")
        if topic != _TOPIC:
            raise Refused(2010, "Topic error")
        if self.subscribed == wanted:
            code, text = (2014, "Repeated subscription") if wanted else (2012, "Not subscribed")
            raise Refused(code, text)
        if wanted:
            check_multi_assets(self.account, STREAM_VARIANTS[self.handshake.path])
        self.subscribed = wanted


class PushChannel:
    """Serves both push channels in the server's event loop; ``clock``, ``heartbeat``: seconds."""

    def __init__(
        self, accounts: AccountBook, plan: FaultPlan, clock: Callable[[], float], heartbeat: float
    ) -> None:
        self._accounts, self._plan = accounts, plan
        self._clock, self._heartbeat = clock, heartbeat
        accounts.on_change = self._publish
        self._versions: Counter[str] = Counter()
        self._users: defaultdict[str, set[_Connection]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None

    @staticmethod
    def accepts(request: web.BaseRequest) -> bool:
        """Whether a request is a valid WebSocket handshake."""
        with contextlib.suppress(ValueError):  # of a header that is not ASCII
            return bool(web.WebSocketResponse().can_prepare(request))
        return False

    async def serve(self, request: web.BaseRequest, handshake: HttpRequest) -> web.StreamResponse:
        """Serve one connection, from its accepted handshake until it ends."""
        self._loop = asyncio.get_running_loop()
        socket = web.WebSocketResponse(timeout=0.2, compress=False, max_msg_size=2**16)
        await socket.prepare(request)
        connection = _Connection(socket, handshake)
        work = (_send(connection, request), self._ping(connection), self._change(connection))
        helpers = [asyncio.create_task(part) for part in work]
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                self._receive(connection, frame.data)
        finally:
            if connection.account is not None:
                self._users[connection.account.uid].remove(connection)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return socket

    def _receive(self, connection: _Connection, text: str) -> None:
        message: dict[str, Any] = {}
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            message = msgspec.json.decode(text, type=dict[str, Any])
        answer: dict[str, object] = {"op": "error", "err-code": 0}
        try:
            match message.get("op"):
                case "pong":
                    connection.unanswered = 0
                    return
                case "auth":
                    answer |= {"op": "auth", "type": "api"}
                    answer["data"] = {"user-id": self._log_in(connection, message)}
                case "sub" | "unsub" as op:
                    topic = message.get("topic")
                    answer |= {"op": op, "cid": message.get("cid"), "topic": topic}
                    connection.subscribe(topic, op == "sub")
                case _:
                    raise Refused(2040, "Missing required parameter: op")
        except Refused as refusal:
            answer |= {"err-code": refusal.code, "err-msg": refusal.message}
        _logger.debug("push: %s: %s", answer["op"], answer["err-code"])
        connection.send({**answer, "ts": self._now_ms(connection.handshake.path)})
        account = connection.account
        if account is not None and (answer["op"], answer["err-code"]) == ("sub", 0):
            # The reply is sent first, then this state, then any later change.
            self._notify(connection, self._notification(self._accounts.update(account.name)))

    def _log_in(self, connection: _Connection, message: dict[str, Any]) -> str:
        """Log a connection in and return its user's id."""
        if connection.account is not None:
            raise Refused(2005, "Already authenticated")
        fault = self._plan.draw(PUSH_LOGIN).fault
        if fault is not None and fault.rule.login is not None:
            raise fault.rule.login(fault.value)
        if missing := [name for name in _SIGNED_PARAMETERS if not message.get(name)]:
            raise Refused(2040, f"Missing required parameter: {missing[0]}")
        path = connection.handshake.path
        query = canonical_query((name, str(message[name])) for name in _SIGNED_PARAMETERS)
        request = replace(connection.handshake, query=query, time_ms=self._now_ms(path))
        try:
            account = authenticate(request, self._accounts, STREAM_VARIANTS[path])
        except Refused as refusal:
            raise Refused(2003, f"Authentication failed: {refusal.message}") from None
        if account.refusal is not None:
            raise Refused(account.refusal.code, account.refusal.message)
        if len(self._users[account.uid]) >= MAX_CONNECTIONS:
            raise Refused(2030, "Exceed the maximum number of connections of one user")
        self._users[account.uid].add(connection)
        connection.account = account
        return account.uid

    def _now_ms(self, path: str) -> int:
        return round((self._clock() + self._plan.clock_seconds(path)) * 1000)

    def _publish(self, account: SandboxAccount) -> None:
        """Send a changed account to its subscribers. For any thread, but not concurrently."""
        self._versions[account.name] += 1
        if self._loop is not None and self._users.get(account.uid):
            message = self._notification(account)
            # A closed event loop raises RuntimeError; then there are no subscribers any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._notify_all, account, message)

    def _notify_all(self, account: SandboxAccount, message: bytes) -> None:
        for connection in self._users[account.uid]:
            if connection.account and connection.account.name == account.name:
                self._notify(connection, message)

    def _notify(self, connection: _Connection, message: bytes) -> None:
        if not connection.subscribed:
            return
        delivery = whole(message)
        fault = self._plan.draw(PUSH_ACCOUNT).fault
        if fault is not None and PUSH_ACCOUNT in fault.rule.paths:
            _logger.info("push: a message (fault: %s)", fault)
            delivery = fault.delivered(connection.latest, message)
        connection.latest = message
        connection.outgoing.put_nowait(delivery)

    def _notification(self, account: SandboxAccount) -> bytes:
        # As seen live: times are text, rows have no available margin, a version number increases.
        balance = with_rows(account.balance, lambda row: _pushed(row, "available_margin"))
        data = {**_pushed(balance), "version": self._versions[account.name]}
        about = {"op": "notify", "topic": _TOPIC, "contract_code": "", "uid": account.uid}
        ts = self._now_ms(PUSH_ACCOUNT)
        return _packed({**about, "ts": ts, "event": "snapshot", "data": data})

    async def _ping(self, connection: _Connection) -> None:
        await asyncio.sleep(self._heartbeat)
        while connection.unanswered < MAX_UNANSWERED:
            connection.unanswered += 1
            connection.send({"op": "ping", "ts": str(self._now_ms(connection.handshake.path))})
            await asyncio.sleep(self._heartbeat)
        await connection.socket.close()

    async def _change(self, connection: _Connection) -> None:
        while self._accounts.random_walk is not None:
            await asyncio.sleep(self._accounts.random_walk.seconds)
            if connection.subscribed and connection.account is not None:
                self._accounts.update(connection.account.name)


async def _send(connection: _Connection, request: web.BaseRequest) -> None:
    """Send messages in their order, until a fault ends or silences the connection."""
    end = "keep"
    with contextlib.suppress(ConnectionError):
        while end == "keep":
            delivery = await connection.outgoing.get()
            for piece in delivery.pieces:
                await connection.socket.send_bytes(piece)
            end = delivery.end
        if end == "reset" and request.transport is not None:
            reset(request.transport)


def _pushed(values: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    return {
        name: str(value) if name in _TIMES and isinstance(value, int) else value
        for name, value in values.items()
        if name not in left_out
    }


def _packed(content: Mapping[str, object]) -> bytes:
    return gzip.compress(msgspec.json.encode(content), compresslevel=1, mtime=0)
