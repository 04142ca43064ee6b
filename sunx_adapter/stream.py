"""Balances that arrive by themselves: one push connection per exchange, and who waits for it.

:class:`AccountStream` keeps the newest account: it connects, logs in, subscribes, and after any
drop does so again. :class:`BalanceWatch` is what an exchange has of it. What an account means is
decided elsewhere, by the same functions as for an answer over REST.

The newest account is *doubted* from the start, after a drop, after a message that cannot be
understood and after one that came out of order, until a newer one arrives. None within the
snapshot timeout: it is read over REST. None within the gap timeout: whoever waits gets a
``NetworkError``. So nothing that happened meanwhile is missed, however it was lost.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from ccxt.base.errors import (
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
    RequestTimeout,
)

from sunx_adapter.config import check_address
from sunx_adapter.protocol.account import AccountAnswer, read_account
from sunx_adapter.protocol.document import decode_json
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.protocol.push import (
    AccountNews,
    Closing,
    Message,
    Ping,
    Refusal,
    Reply,
    auth_message,
    pong_message,
    read_message,
    subscribe_message,
)
from sunx_adapter.transport.body import MAX_RESPONSE_BYTES
from sunx_adapter.transport.retry import backoff
from sunx_adapter.transport.settings import ConnectionSettings
from sunx_adapter.transport.websocket import PushSocket, connect
from sunx_adapter.venue import PATH_VARIANTS

if TYPE_CHECKING:
    from sunx_adapter.async_exchange import AsyncFace

STREAM_DEFAULTS: Final[dict[str, float]] = {
    "streamGapTimeout": 30_000,
    "streamSilenceTimeout": 20_000,
    "streamSnapshotTimeout": 1_000,
    "streamReconnectDelay": 200,
}
"""Options of the stream, ms: how long whoever waits bears not knowing the newest account; how long
the venue may say nothing (its heartbeat comes about every 5 s); how long to wait for a snapshot
before reading one; the longest wait before the first reconnection, which doubles up to 5 s."""

_CLOCK_OFF_MS: Final = 2_000
_CLOCK_TO_BLAME_MS: Final = 60_000
"""A login that is refused for its key is tried with the venue's time only if ours is so far off;
the venue bears 5 minutes."""

_numbers = itertools.count(1)
"""All news of all streams, numbered, so that a place in one stream is behind that of any later."""


class StreamState(Enum):
    """Where the push connection stands."""

    OFF = "off"
    """Not asked for, or closed."""
    CONNECTING = "connecting"
    """Connecting, logging in or subscribing."""
    LIVE = "live"
    """Subscribed."""
    WAITING = "waiting"
    """Dropped; waiting to connect again."""
    REFUSED = "refused"
    """Ended by a refusal that will not go away by itself."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How the push connection does.

    Attributes:
        state: where it stands.
        age: seconds since the account was last known to be the newest; ``None`` before the first.
        doubted: seconds since something may have been missed; ``None`` if nothing may.
        connections: how often it was connected and subscribed.
        reason: of the latest drop or refusal, with no secret in it; ``None`` before any.
    """

    state: StreamState = StreamState.OFF
    age: float | None = None
    doubted: float | None = None
    connections: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Seconds; see :data:`STREAM_DEFAULTS`. ``timeout`` is for connecting and for each answer."""

    timeout: float
    gap: float
    silence: float
    snapshot: float
    first_wait: float

    @classmethod
    def of(cls, options: Mapping[str, Any], timeout_ms: float) -> "StreamSettings":
        """The settings of an exchange.

        Raises:
            BadRequest: one is no number of milliseconds above 0.
        """
        seconds: list[float] = []
        for name, default in STREAM_DEFAULTS.items():
            value = options.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise BadRequest(f"options[{name!r}] must be a number of milliseconds above 0")
            seconds.append(value / 1000)
        return cls(timeout_ms / 1000, *seconds)


class Line(Protocol):
    """What a stream needs of its exchange."""

    async def connect(self) -> PushSocket:
        """A new connection."""

    def login(self) -> str:
        """The login, signed for now."""

    async def read(self) -> "News":
        """The account over REST."""

    def clock_ahead(self, venue_time: int) -> int:
        """By how many ms our clock is ahead of the venue's."""

    def correct_clock(self, venue_time: int) -> None:
        """Go by the venue's clock from now on."""

    def log(self, text: str) -> None:
        """Tell the log at WARNING; secrets are taken out."""


class News:
    """An account as it arrived, to be handed to any number of callers.

    Args:
        answer: the account.
        body: what it was read from. It is read anew for every caller but the first, so that none
            sees what another does to its ``info``.
        pushed: whether it came by push.
    """

    def __init__(self, answer: AccountAnswer, body: bytes, *, pushed: bool) -> None:
        self.timestamp = answer.timestamp
        self.pushed = pushed
        self._first: AccountAnswer | None = answer
        self._body = body

    def answer(self) -> AccountAnswer:
        """The account, the caller's own."""
        first, self._first = self._first, None
        return first or read_account(decode_json(self._body))


class Place:
    """How far one of those who wait has come: the number of the news that it got last."""

    __slots__ = ("seen",)

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen


class Places:
    """The places of tasks. A task that comes again has its own.

    A new task goes on where the task that made it was. ``asyncio.wait_for(watch_balance(), …)``
    may make a task of each call, by a task that never calls itself; so a task that has ended also
    leaves its place to a new one. A loop over either does not get the same balance twice.
    """

    def __init__(self) -> None:
        self._of_task: dict[asyncio.Task[Any], Place] = {}
        self._left: list[Place] = []
        self._inherited: ContextVar[Place | None] = ContextVar("place", default=None)

    @property
    def left(self) -> int:
        """How many places wait for a new task."""
        return len(self._left)

    def current(self) -> Place:
        """The place of the task that asks."""
        task = asyncio.current_task()
        assert task is not None
        place = self._of_task.get(task)
        if place is None:
            place = self._of_task[task] = self._first()
            self._inherited.set(place)
            task.add_done_callback(self._leave)
        return place

    def _first(self) -> Place:
        inherited = self._inherited.get() or Place()
        if not self._left:
            return Place(inherited.seen)
        newest = max(self._left, key=lambda place: place.seen)
        self._left.remove(newest)
        newest.seen = max(newest.seen, inherited.seen)
        return newest

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._left.append(self._of_task.pop(task))


class AccountStream:
    """The newest account, kept by a task of its own until it is closed or refused for good.

    For one event loop, the one that it is made in.

    Args:
        line: what it needs of its exchange.
        settings: how long it bears what.
    """

    def __init__(self, line: Line, settings: StreamSettings) -> None:
        self._line = line
        self._settings = settings
        self.loop = asyncio.get_running_loop()
        self.failure: BaseError | None = None
        """Why it ended; ``None`` while it goes on."""
        self.told = False
        """Whether anyone got to know the failure."""
        self._state = StreamState.CONNECTING
        self._connections = 0
        self._reason: BaseError | None = None
        self._news: News | None = None
        self._number = 0
        self._waiting = 0
        self._complaint = BaseError()
        self._complaints = 0
        self._untold = False
        self._order: tuple[int | None, int | None] = (None, None)
        self._data: object = None
        self._fresh_at: float | None = None
        self._doubted_since: float | None = self.loop.time()
        self._changed = asyncio.Event()
        self._clock_corrected = False
        self._catching_up: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._run())

    # -- for those who wait -----------------------------------------------------------------

    async def next(self, place: Place) -> News:
        """The newest account as soon as there is one newer than the place; which moves to it.

        Raises:
            NetworkError: the newest account has not been known for the gap timeout.
            BadResponse: a message could not be understood, meanwhile or while nobody waited.
            BaseError: the stream has ended.
        """
        began = self.loop.time()
        complaints = self._complaints - self._untold
        self._waiting += 1
        try:
            while self._news is None or self._number <= place.seen:
                if complaints != self._complaints:
                    self._untold = False
                    raise _anew(self._complaint)
                if self.failure is not None:
                    self.told = True
                    raise _anew(self.failure)
                await self._change(began)
        finally:
            self._waiting -= 1
        place.seen = self._number
        return self._news

    async def _change(self, began: float) -> None:
        """Wait until something changes; ``began`` is when the call did."""
        since = self._doubted_since
        deadline = None if since is None else max(began, since) + self._settings.gap
        if deadline is not None and self.loop.time() >= deadline:
            kind = type(self._reason) if isinstance(self._reason, NetworkError) else NetworkError
            raise kind(
                f"no balance for {self._settings.gap * 1000:g} ms (streamGapTimeout), while "
                f"connecting goes on: {self._reason or 'nothing came'}"
            )
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            pass  # looked into by the next round

    def doubt(self, reason: BaseError | None = None) -> None:
        """What is newest is not known any more: see the module's text."""
        self._reason = reason or self._reason
        if self._doubted_since is None:
            self._doubted_since = self.loop.time()
            self._wake()
        if self._state is StreamState.LIVE and self._catching_up is None:
            self._catching_up = self._begin(self._catch_up())

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether to go on with this one, rather than to make another."""
        if type(self.failure) is AuthenticationError:
            return True
        return self.loop is loop and not (self.failure and self.told)

    def status(self) -> StreamStatus:
        """How it does."""
        now = self.loop.time()
        return StreamStatus(
            state=self._state,
            age=None if self._fresh_at is None else now - self._fresh_at,
            doubted=None if self._doubted_since is None else now - self._doubted_since,
            connections=self._connections,
            reason=None if self._reason is None else str(self._reason),
        )

    async def close(self) -> None:
        """End it; when this returns, nothing of it is left."""
        if self.failure is None:
            self.failure = ExchangeClosedByUser("the stream was closed")
        self._state = StreamState.OFF
        self._wake()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- the newest -------------------------------------------------------------------------

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _publish(self, news: News) -> None:
        self._news = news
        self._number = next(_numbers)
        self._untold = False
        self._wake()

    def _complain(self, failure: BaseError) -> None:
        """Tell all who wait; if nobody does, the next who would have to."""
        self._complaint = failure
        self._complaints += 1
        self._untold = not self._waiting
        self._wake()

    def _take(self, message: AccountNews) -> None:
        version, timestamp = message.version, message.answer.timestamp
        last_version, last_timestamp = self._order
        if _goes_back(version, last_version) or _goes_back(timestamp, last_timestamp):
            self.doubt()
            return
        answer, data = message.answer, message.answer.info["data"]
        # A snapshot after a reconnection repeats the state: that is no news.
        repeats = version is not None and version == last_version and data == self._data
        self._order, self._data = (version, timestamp or last_timestamp), data
        self._settle()
        if not repeats:
            self._publish(News(answer, message.body, pushed=True))

    def _settle(self) -> None:
        self._fresh_at = self.loop.time()
        self._doubted_since = None
        task, self._catching_up = self._catching_up, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _catch_up(self) -> None:
        """Read the account over REST until something settles the doubt."""
        wait = self._settings.snapshot
        for failures in itertools.count(1):
            await asyncio.sleep(wait)
            try:
                news = await self._line.read()
            except (BaseError, TransientError) as error:
                self._failed_to_read(error)
            else:
                # What is pushed from now on may count its versions anew.
                self._order, self._data = (None, news.timestamp), None
                self._settle()
                self._publish(news)
                return
            wait = max(self._settings.snapshot, backoff(failures))

    def _failed_to_read(self, error: BaseError | TransientError) -> None:
        failure = _bare(error)
        self._reason = failure
        self._line.log(f"the account could not be read after a gap: {failure}")
        if isinstance(failure, BadResponse):
            self._complain(failure)

    # -- the connection ---------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # A fault of this program; whoever waits must not wait for ever.
            self._end(ExchangeError(f"the stream broke: {type(error).__name__}: {error}"))

    def _end(self, failure: BaseError) -> None:
        if type(failure) is AuthenticationError:
            failure = AuthenticationError(f"{failure}; it is not tried again with the same key")
        self.failure = self._reason = failure
        self._state = StreamState.REFUSED
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._wake()

    def _forget_catching_up(self) -> None:
        task, self._catching_up = self._catching_up, None
        if task is not None:
            task.cancel()

    async def _run(self) -> None:
        failures = 0
        while True:
            fresh_at = self._fresh_at
            try:
                wait = await self._connection()
            except BaseError as error:
                self._end(_bare(error))
                return
            failures = 1 if self._fresh_at != fresh_at else failures + 1
            if wait is None:
                wait = backoff(failures, self._settings.first_wait)
            self._line.log(f"the push connection dropped; again in {wait:.2f} s: {self._reason}")
            await asyncio.sleep(wait)

    async def _connection(self) -> float | None:
        """One connection, until it drops; the seconds to wait before the next, where known.

        Raises:
            BaseError: it was refused for good.
        """
        self._state = StreamState.CONNECTING
        try:
            socket = await self._line.connect()
            try:
                await self._converse(socket)
            finally:
                self._state = StreamState.WAITING
                self._forget_catching_up()
                await socket.close()
        except TransientError as failure:
            self._state = StreamState.WAITING
            self.doubt(_bare(failure))
            return failure.wait
        raise AssertionError("a conversation ends with an exception")

    async def _converse(self, socket: PushSocket) -> None:
        """Log in, subscribe, and take what comes until the connection is over.

        Raises:
            TransientError: it is over, and another one may do better.
            BaseError: the venue refused for good.
        """
        await socket.send(self._line.login())
        await self._accepted(socket, "auth")
        self._clock_corrected = False
        await socket.send(subscribe_message())
        await self._accepted(socket, "sub")
        self._state = StreamState.LIVE
        self._connections += 1
        if self._doubted_since is not None:
            self.doubt()
        while True:
            message = await self._message(socket)
            if isinstance(message, AccountNews):
                self._take(message)
            elif isinstance(message, Reply) and message.refusal is not None:
                raise _refused(message.refusal)

    async def _accepted(self, socket: PushSocket, op: str) -> None:
        """Wait until the venue says yes to our message."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                while True:
                    message = await self._message(socket)
                    if isinstance(message, AccountNews):
                        self._take(message)
                    elif isinstance(message, Reply):
                        self._check(message)
                        if message.op == op:
                            return
        except TimeoutError:
            milliseconds = self._settings.timeout * 1000
            raise TransientError(
                RequestTimeout(f"no answer to {op} within {milliseconds:g} ms (timeout)")
            ) from None

    def _check(self, reply: Reply) -> None:
        if reply.refusal is None:
            return
        if reply.op == "auth" and self._clock_is_to_blame(reply.refusal.error, reply.ts):
            raise TransientError(reply.refusal.error, wait=0.0)
        raise _refused(reply.refusal)

    def _clock_is_to_blame(self, error: BaseError, venue_time: int | None) -> bool:
        """Whether the venue's clock differs from ours and was not gone by yet; it is from now."""
        its_kind = isinstance(error, InvalidNonce) or type(error) is AuthenticationError
        if venue_time is None or self._clock_corrected or not its_kind:
            return False
        ahead = self._line.clock_ahead(venue_time)
        off = _CLOCK_OFF_MS if isinstance(error, InvalidNonce) else _CLOCK_TO_BLAME_MS
        if abs(ahead) <= off:
            return False
        self._clock_corrected = True
        self._line.correct_clock(venue_time)
        self._line.log(f"corrected this machine's clock by {-ahead / 1000:+.1f} s: {error}")
        return True

    async def _message(self, socket: PushSocket) -> Message:
        """The next message that is no heartbeat, which is answered; one not understood is told."""
        while True:
            try:
                message = read_message(await self._received(socket))
            except BadResponse as error:
                failure = _bare(error)
                self.doubt(failure)
                self._complain(failure)
                continue
            if isinstance(message, Closing):
                raise TransientError(ExchangeNotAvailable("the venue is closing the connection"))
            if not isinstance(message, Ping):
                return message
            await socket.send(pong_message(message))

    async def _received(self, socket: PushSocket) -> bytes:
        silence = self._settings.silence
        try:
            async with asyncio.timeout(silence):
                return await socket.receive()
        except TimeoutError:
            raise TransientError(
                NetworkError(f"no heartbeat for {silence * 1000:g} ms (streamSilenceTimeout)")
            ) from None


def _goes_back(value: int | None, last: int | None) -> bool:
    return value is not None and last is not None and value < last


def _refused(refusal: Refusal) -> BaseError | TransientError:
    return TransientError(refusal.error) if refusal.transient else refusal.error


def _bare(error: BaseError | TransientError) -> BaseError:
    """The same without a traceback, whose frames may hold a signed message."""
    return _anew(error.error if isinstance(error, TransientError) else error)


def _anew(error: BaseError) -> BaseError:
    return type(error)(str(error))


class _ExchangeLine:
    """What a stream needs of its exchange, taken from the same places as for REST."""

    def __init__(self, exchange: "AsyncFace", address: str, path: str) -> None:
        self._exchange = exchange
        self._address = address
        self._path = path

    async def connect(self) -> PushSocket:
        exchange = self._exchange
        if exchange.options["adjustForTimeDifference"] and not exchange._clock_measured:
            await exchange._measure_clock(exchange._deadline())
        return await connect(
            self._address + self._path,
            settings=_connection_settings(exchange),
            headers={
                name: value
                for name, value in exchange._headers().items()
                if not name.lower().startswith("accept")
            },
            http_exceptions=exchange.httpExceptions,
            max_bytes=exchange.options.get("maxResponseBytes", MAX_RESPONSE_BYTES),
            timeout_ms=exchange.timeout,
        )

    def login(self) -> str:
        exchange = self._exchange
        return auth_message(
            exchange._current_credentials(),
            host=exchange.options.get("signatureHost") or urlsplit(self._address).hostname or "",
            path=self._path,
            milliseconds=exchange.nonce(),
        )

    async def read(self) -> News:
        call, _ = self._exchange._balance_call({})
        document, body = await self._exchange._read(call)
        return News(read_account(document, body), body, pushed=False)

    def clock_ahead(self, venue_time: int) -> int:
        return self._exchange.nonce() - venue_time

    def correct_clock(self, venue_time: int) -> None:
        self._exchange._correct_clock(venue_time)

    def log(self, text: str) -> None:
        exchange = self._exchange
        exchange.logger.warning("%s", exchange._redacted(f"{exchange.id}: {text}"))


def _connection_settings(exchange: "AsyncFace") -> ConnectionSettings:
    """As for REST, and through REST's proxy too unless the push channel has one of its own."""
    settings = exchange._connection_settings()
    ws_proxy, wss_proxy, _ = exchange.check_ws_proxy_settings()
    proxy = ws_proxy or wss_proxy or settings.proxy
    if proxy is not None and proxy.startswith("socks"):
        raise NotSupported(
            "the push channel cannot go through a SOCKS proxy: set wssProxy to an HTTP proxy, or "
            "use fetch_balance()"
        )
    return replace(settings, proxy=proxy)


class BalanceWatch:
    """An exchange's stream, made when it is first asked for.

    Args:
        exchange: whose keys, addresses, clock and options count, as they are at each connection.
    """

    def __init__(self, exchange: "AsyncFace") -> None:
        self._exchange = exchange
        self._places = Places()
        self._stream: AccountStream | None = None
        self._made_for: tuple[object, ...] = ()

    async def next(self, params: Mapping[str, Any], place: Place | None = None) -> dict[str, Any]:
        """The next balance; see ``AsyncFace.watch_balance``.

        Args:
            params: as for ``fetch_balance``.
            place: whose next one; the current task's if ``None``.
        """
        exchange = self._exchange
        call, policy = exchange._balance_call(params)
        if call.parameters:
            names = ", ".join(map(repr, call.parameters))
            raise NotSupported(f"parameter {names} cannot be sent over the push channel")
        exchange._check_open()
        exchange.check_required_credentials()
        stream = await self._current()
        news = await stream.next(self._places.current() if place is None else place)
        try:
            return exchange._structure(news.answer(), policy)
        except BadResponse as error:
            if news.pushed:
                stream.doubt(_bare(error))
            raise

    def status(self) -> StreamStatus:
        """How the connection does."""
        return StreamStatus() if self._stream is None else self._stream.status()

    async def close(self) -> None:
        """End the stream; when this returns, nothing of it is left."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.loop is asyncio.get_running_loop():
            await stream.close()

    async def _current(self) -> AccountStream:
        exchange, loop = self._exchange, asyncio.get_running_loop()
        address = exchange.urls["api"]["stream"].replace("{hostname}", exchange.hostname)
        check_address(address)
        path = PATH_VARIANTS[exchange.options["pathVariant"]].stream
        made_for = (address, path, exchange.apiKey, exchange.secret, exchange.privateKey)
        old = self._stream
        if old is not None and made_for == self._made_for and old.serves(loop):
            return old
        settings = StreamSettings.of(exchange.options, exchange.timeout)
        line = _ExchangeLine(exchange, address.rstrip("/"), path)
        # Before anything is awaited, so that tasks that come together make one stream.
        self._stream, self._made_for = AccountStream(line, settings), made_for
        if old is not None and old.loop is loop:
            await old.close()
        return self._stream
