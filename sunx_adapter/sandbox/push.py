"""The sandbox's push channel: login, subscription, heartbeat, and every change of an account."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from aiohttp import WSMsgType, web

from sunx_adapter.protocol.signing import encode_query
from sunx_adapter.sandbox.accounts import SandboxAccount
from sunx_adapter.sandbox.answers import json_text
from sunx_adapter.sandbox.checks import Refused, Request, authenticate
from sunx_adapter.sandbox.fault_plan import Draw, FaultPlan
from sunx_adapter.sandbox.faults import PUSH_LOGIN, PUSH_NEWS, FaultKind
from sunx_adapter.venue import PATH_VARIANTS, PathVariantName

STREAM_VARIANTS: Final[dict[str, PathVariantName]] = {
    variant.stream: name for name, variant in PATH_VARIANTS.items()
}
MAX_CONNECTIONS: Final = 30
"""At most so many connections of one user, the venues say."""

HEARTBEAT_SECONDS: Final = 5.0
MAX_UNANSWERED: Final = 5

_TOPIC: Final = "account"
_MAX_MESSAGE: Final = 64 * 1024
_MAX_PENDING: Final = 10_000
_TIMES: Final = ("created_time", "updated_time")
_UNPUSHED: Final = ("available_margin",)
_AUTHENTICATION: Final = (
    *("AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp", "Signature"),
)
_GARBAGE: Final = bytes(range(256))


def pushed_data(balance: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The ``data`` of a message.

    As seen live: times are text, a version counts up, and a row has no ``available_margin``.
    """
    data = {**_with_text_times(balance), "version": version}
    rows = data.get("details")
    if isinstance(rows, list):
        data["details"] = [_pushed_row(row) if isinstance(row, Mapping) else row for row in rows]
    return data


def _pushed_row(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name not in _UNPUSHED}
    return _with_text_times(kept)


def _with_text_times(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if name in _TIMES and isinstance(value, int) else value
        for name, value in values.items()
    }


@dataclass(eq=False)
class _Connection:
    socket: web.WebSocketResponse
    transport: asyncio.Transport | None
    path: str
    host: str
    account: SandboxAccount | None = None
    subscribed: bool = False
    silent: bool = False
    unanswered: int = 0
    last: dict[str, Any] | None = None
    news: "asyncio.Queue[dict[str, Any]]" = field(
        default_factory=lambda: asyncio.Queue(_MAX_PENDING)
    )

    async def send(self, message: Mapping[str, object]) -> None:
        await self.send_bytes(gzip.compress(json_text(message), compresslevel=1, mtime=0))

    async def send_bytes(self, message: bytes) -> None:
        if not self.silent:
            with contextlib.suppress(ConnectionError):
                await self.socket.send_bytes(message)

    def tell(self, message: dict[str, Any]) -> None:
        if self.subscribed and not self.news.full():
            self.news.put_nowait(message)

    def reset(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class PushChannel:
    """Serves the push channel of both venues. For the server's event loop, unless said otherwise.

    Args:
        accounts: gives the accounts as they are now.
        clock: seconds UTC.
        plan: what goes wrong.
        heartbeat: seconds between two pings.
    """

    def __init__(
        self,
        accounts: Callable[[], Iterable[SandboxAccount]],
        *,
        clock: Callable[[], float],
        plan: FaultPlan,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._plan = plan
        self._heartbeat = heartbeat
        self._versions: dict[str, int] = {}
        self._connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def changed(self, account: SandboxAccount) -> None:
        """Tell all who subscribed. For any thread, one at a time."""
        self._versions[account.name] = self._versions.get(account.name, 0) + 1
        message = self._notification(account)
        loop = self._loop
        if loop is not None:
            # A sandbox that is closed has nobody to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell, account.name, message)

    def _tell(self, name: str, message: dict[str, Any]) -> None:
        for connection in self._connections:
            if connection.account is not None and connection.account.name == name:
                connection.tell(message)

    async def talk(self, request: web.BaseRequest, ending: asyncio.Event) -> web.StreamResponse:
        """Serve one connection until it is over."""
        self._loop = asyncio.get_running_loop()
        socket = web.WebSocketResponse(timeout=0.2, compress=False, max_msg_size=_MAX_MESSAGE)
        await socket.prepare(request)
        transport = request.transport
        path, host = request.raw_path.partition("?")[0], request.headers.get("Host", "")
        connection = _Connection(
            socket, transport if isinstance(transport, asyncio.Transport) else None, path, host
        )
        self._connections.add(connection)
        helpers = [
            asyncio.create_task(work)
            for work in (self._push(connection), self._beat(connection), _end(socket, ending))
        ]
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                await self._hear(connection, frame.data)
        finally:
            self._connections.discard(connection)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return socket

    # -- what it hears ----------------------------------------------------------------------

    async def _hear(self, connection: _Connection, text: str) -> None:
        try:
            message = json.loads(text)
            op = message["op"]
        except (ValueError, TypeError, KeyError):
            message, op = {}, None
        match op:
            case "auth":
                await self._reply(connection, {"op": op, "type": "api"}, self._auth, message)
            case "sub":
                echo = {"op": op, "cid": message.get("cid"), "topic": message.get("topic")}
                await self._reply(connection, echo, self._subscribe, message)
            case "unsub":
                echo = {"op": op, "cid": message.get("cid"), "topic": message.get("topic")}
                await self._reply(connection, echo, self._unsubscribe, message)
            case "pong":
                connection.unanswered = 0
            case _:
                refusal = {"err-code": 2040, "err-msg": "Missing required parameter: op"}
                await connection.send({"op": "error", **refusal, "ts": self._milliseconds()})

    async def _reply(
        self,
        connection: _Connection,
        echo: dict[str, object],
        act: Callable[[_Connection, dict[str, Any]], Mapping[str, object]],
        message: dict[str, Any],
    ) -> None:
        outcome: Mapping[str, object]
        try:
            outcome = {"err-code": 0, **act(connection, message)}
        except Refused as refusal:
            outcome = {"err-code": refusal.code, "err-msg": refusal.message}
        await connection.send({**echo, **outcome, "ts": self._milliseconds()})
        if echo["op"] == "sub" and outcome["err-code"] == 0 and connection.account is not None:
            # Nothing can have come in between: only this event loop puts news there.
            connection.subscribed = True
            connection.tell(self._notification(self._now(connection.account)))

    def _auth(self, connection: _Connection, message: dict[str, Any]) -> Mapping[str, object]:
        if connection.account is not None:
            raise Refused(2005, "Already authenticated")
        fault = self._plan.draw(PUSH_LOGIN).fault
        if fault is not None and fault.kind == FaultKind.MAINTENANCE:
            raise Refused(1006, "System is in maintenance")
        if fault is not None and fault.kind == FaultKind.PUSH_CODE:
            raise Refused(int(fault.value), "refused on purpose")
        if missing := [name for name in _AUTHENTICATION if not message.get(name)]:
            raise Refused(2040, f"Missing required parameter: {missing[0]}")
        account = self._authenticated(connection, message)
        if account.refusal is not None:
            raise Refused(account.refusal.code, account.refusal.message)
        others = [c for c in self._connections if c.account and c.account.uid == account.uid]
        if len(others) >= MAX_CONNECTIONS:
            raise Refused(2030, "Exceed the maximum number of connections of one user")
        connection.account = account
        return {"data": {"user-id": account.uid}}

    def _authenticated(self, connection: _Connection, message: dict[str, Any]) -> SandboxAccount:
        values = {name: str(message[name]) for name in _AUTHENTICATION}
        signature = quote(values.pop("Signature"), safe="")
        query = f"{encode_query(values)}&Signature={signature}"
        try:
            return authenticate(
                Request("GET", connection.path, query, connection.host),
                {account.api_key: account for account in self._accounts()},
                variant=STREAM_VARIANTS[connection.path],
                milliseconds=self._milliseconds(),
            )
        except Refused as refusal:
            raise Refused(2003, f"Authentication failed: {refusal.message}") from None

    def _subscribe(self, connection: _Connection, message: dict[str, Any]) -> Mapping[str, object]:
        self._check_topic(connection, message)
        if connection.subscribed:
            raise Refused(2014, "Repeated subscription")
        account = connection.account
        if account and STREAM_VARIANTS[connection.path] == "v5" and account.asset_mode == 0:
            raise Refused(4002, "The account is not in the multi-assets collateral mode")
        return {}

    def _unsubscribe(
        self, connection: _Connection, message: dict[str, Any]
    ) -> Mapping[str, object]:
        self._check_topic(connection, message)
        if not connection.subscribed:
            raise Refused(2012, "Not subscribed")
        connection.subscribed = False
        return {}

    def _check_topic(self, connection: _Connection, message: dict[str, Any]) -> None:
        if connection.account is None:
            raise Refused(2002, "Authentication required")
        if not message.get("topic"):
            raise Refused(2040, "Missing required parameter: topic")
        if message["topic"] != _TOPIC:
            raise Refused(2010, "Topic error")

    # -- what it says -----------------------------------------------------------------------

    def _now(self, account: SandboxAccount) -> SandboxAccount:
        return next(other for other in self._accounts() if other.name == account.name)

    def _milliseconds(self) -> int:
        ahead = self._clock_ahead()
        return round((self._clock() + ahead) * 1000)

    def _clock_ahead(self) -> float:
        return sum(
            float(fault.value) for fault in self._plan.standing if fault.kind == FaultKind.CLOCK
        )

    def _notification(self, account: SandboxAccount) -> dict[str, Any]:
        return {
            "op": "notify",
            "topic": _TOPIC,
            "contract_code": "",
            "ts": self._milliseconds(),
            "uid": account.uid,
            "event": "snapshot",
            "data": pushed_data(account.balance, self._versions.get(account.name, 0)),
        }

    async def _push(self, connection: _Connection) -> None:
        while True:
            message = await connection.news.get()
            await self._deliver(connection, message, self._plan.draw(PUSH_NEWS))
            connection.last = message

    async def _deliver(self, connection: _Connection, message: dict[str, Any], draw: Draw) -> None:
        match draw.fault and draw.fault.kind:
            case FaultKind.PUSH_RESET:
                connection.reset()
            case FaultKind.PUSH_SILENCE:
                connection.silent = True
            case FaultKind.PUSH_GARBAGE:
                await connection.send_bytes(_GARBAGE)
            case FaultKind.PUSH_ORDER if connection.last is not None:
                await connection.send(message)
                await connection.send(connection.last)
            case _:
                await connection.send(message)

    async def _beat(self, connection: _Connection) -> None:
        while connection.unanswered < MAX_UNANSWERED:
            await asyncio.sleep(self._heartbeat)
            connection.unanswered += 1
            await connection.send({"op": "ping", "ts": str(self._milliseconds())})
        await connection.socket.close()


async def _end(socket: web.WebSocketResponse, ending: asyncio.Event) -> None:
    await ending.wait()
    await socket.close()
