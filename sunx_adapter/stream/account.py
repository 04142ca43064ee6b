"""The newest account over the push channel: connect, log in, subscribe, and again after any drop.

The newest account is *doubted* from the start, after a drop, after a message that cannot be
understood and after one that came out of order, until a newer one arrives. None within the
snapshot timeout: it is read over REST. None within the gap timeout: whoever waits gets a
``NetworkError``. So nothing that happened meanwhile is missed, however it was lost. An older
account is never published.

Whatever a message is, the stream goes on: it ends when it is closed or refused for good.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from ccxt.base.errors import (
    AuthenticationError,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    ExchangeError,
    ExchangeNotAvailable,
    InvalidNonce,
    NetworkError,
    RequestTimeout,
)

from sunx_adapter.exchange.retry import CLOCK_OFF_MS, backoff, clock_text
from sunx_adapter.protocol.account import AccountAnswer, read_account
from sunx_adapter.protocol.document import decode_json
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.protocol.push import (
    AccountNews,
    Closing,
    Ping,
    Refusal,
    Reply,
    pong_message,
    read_message,
    subscribe_message,
)
from sunx_adapter.stream.cursor import Cursor
from sunx_adapter.wire.websocket import PushSocket

Result = TypeVar("Result")

STREAM_DEFAULTS: Final[dict[str, float]] = {
    "streamGapTimeout": 30_000,
    "streamSilenceTimeout": 20_000,
    "streamSnapshotTimeout": 1_000,
    "streamReconnectDelay": 200,
}
"""Options of the stream, ms: how long a caller waits for a fresh balance; how long the venue may be
silent (its heartbeat comes about every 5 s) or take no message; how long to wait for a snapshot
before reading one; the longest wait before the first reconnection, which doubles up to 25 times as
long and 5 s."""

_CLOCK_TO_BLAME_MS: Final = 60_000
"""A login that is refused for its key is tried with the venue's time only if ours differs by so
much; the venue accepts 5 minutes."""

_MAX_REASON: Final = 600

_LIVED_SECONDS: Final = 10.0
"""After a connection that lasted so long, reconnecting starts anew with the shortest wait."""

_MOST_WAITS: Final = 25
"""The wait before a reconnection doubles, up to so many times the first one."""

_numbers: Final = itertools.count(1)
"""Of all accounts that streams publish, so that a cursor is behind those of any later stream."""


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
        """The settings of an exchange."""
        waits = (options.get(name, default) for name, default in STREAM_DEFAULTS.items())
        return cls(timeout_ms / 1000, *(milliseconds / 1000 for milliseconds in waits))


class StreamSource(Protocol):
    """What a stream needs of its exchange."""

    def identity(self) -> object:
        """What a stream is made for: another one is needed once this is not the same any more.

        Raises:
            BaseError: nothing can be streamed as the exchange is set now.
        """

    def settings(self) -> StreamSettings:
        """How long to wait for what."""

    async def connect(self) -> PushSocket:
        """A new connection."""

    def login(self) -> str:
        """The login message, signed for now."""

    async def read(self) -> AccountAnswer:
        """The account over REST."""

    def clock_ahead(self, venue_time: int) -> int:
        """By how many ms our clock is ahead of the venue's."""

    def use_clock(self, venue_time: int) -> None:
        """Go by the venue's clock from now on."""

    def cleaned(self, text: str) -> str:
        """A text without secrets."""

    def log(self, text: str) -> None:
        """Tell the log at WARNING, without secrets."""


class News:
    """An account as it arrived, to be handed to any number of callers.

    Args:
        answer: the account. It is decoded anew for every caller but the first, so that none sees
            what another does to its ``info``.
        pushed: whether it came by push.
    """

    def __init__(self, answer: AccountAnswer, *, pushed: bool) -> None:
        self.pushed = pushed
        self._first: AccountAnswer | None = answer
        self._body = answer.document.body

    def answer(self) -> AccountAnswer:
        """The account, the caller's own."""
        first, self._first = self._first, None
        return first or read_account(decode_json(self._body))


class AccountStream:
    """The newest account, kept by a task of its own until it is closed or refused for good.

    For one event loop, the one that it is made in.

    Args:
        source: what it needs of its exchange.
        settings: how long to wait for what.
    """

    def __init__(self, source: StreamSource, settings: StreamSettings) -> None:
        self._source = source
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
        self._version: int | None = None
        self._timestamp: int | None = None
        self._data: object = None
        self._fresh_at: float | None = None
        self._doubted_since: float | None = self.loop.time()
        self._changed = asyncio.Event()
        self._clock_used = False
        self._catching_up: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._run())

    # -- for those who wait -----------------------------------------------------------------

    async def next(self, cursor: Cursor) -> News:
        """The newest account as soon as there is one newer than the cursor, which moves to it.

        Raises:
            NetworkError: the newest account has not been known for the gap timeout.
            BadResponse: a message could not be understood, meanwhile or while nobody waited.
            BaseError: the stream has ended.
        """
        began = self.loop.time()
        complaints = self._complaints - self._untold
        self._waiting += 1
        try:
            while self._news is None or self._number <= cursor.seen:
                if complaints != self._complaints:
                    self._untold = False
                    raise _anew(self._complaint)
                if self.failure is not None:
                    self.told = True
                    raise _anew(self.failure)
                await self._change(began)
        finally:
            self._waiting -= 1
        cursor.seen = self._number
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

    def doubt(self, reason: BaseError | TransientError | None = None) -> None:
        """Mark the newest account as possibly stale."""
        if reason is not None:
            self._reason = self._clean(reason)
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
        """Raise this in all waiting calls, or else in the next one."""
        self.doubt(failure)
        self._complaint = self._reason or failure
        self._complaints += 1
        self._untold = not self._waiting
        self._wake()

    def _take(self, message: AccountNews) -> None:
        version, timestamp = message.version, message.answer.timestamp
        if _goes_back(version, self._version) or _goes_back(timestamp, self._timestamp):
            self.doubt()
            return
        data = message.answer.info["data"]
        # A snapshot after a reconnection repeats the state: that is no news.
        repeats = version is not None and version == self._version and data == self._data
        self._version, self._data = version, data
        self._timestamp = timestamp or self._timestamp
        self._settle()
        if not repeats:
            self._publish(News(message.answer, pushed=True))

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
                answer = await self._source.read()
                if _goes_back(answer.timestamp, self._timestamp):
                    raise NetworkError("the account that was read is older than the one pushed")
            except Exception as error:  # noqa: BLE001 - the stream goes on
                self._failed_to_read(error)
            else:
                # What is pushed from now on may count its versions anew.
                self._version = self._data = None
                self._timestamp = answer.timestamp or self._timestamp
                self._settle()
                self._publish(News(answer, pushed=False))
                return
            wait = max(self._settings.snapshot, backoff(failures))

    def _failed_to_read(self, error: Exception) -> None:
        self._reason = self._clean(error)
        self._source.log(f"the account could not be read after a gap: {self._reason}")
        if isinstance(self._reason, BadResponse):
            self._complain(self._reason)

    # -- the connection ---------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, error: BaseError) -> None:
        failure = self._clean(error)
        if type(failure) is AuthenticationError:
            failure = AuthenticationError(f"{failure}; it is not tried again with the same key")
        self.failure = self._reason = failure
        self._state = StreamState.REFUSED
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._wake()

    async def _run(self) -> None:
        failures = 0
        while True:
            began = self.loop.time()
            wait = None
            try:
                await self._connection()
            except TransientError as error:
                self.doubt(error)
                wait = error.retry_after
            except BaseError as error:
                self._end(error)
                return
            except Exception as error:  # noqa: BLE001 - a fault of this program ends no stream
                self._complain(self._clean(error))
            # A connection that drops at once is no reason to come again at once.
            lived = self.loop.time() - began > _LIVED_SECONDS
            failures = 1 if lived else failures + 1
            if wait is None:
                wait = min(
                    backoff(failures, self._settings.first_wait),
                    self._settings.first_wait * _MOST_WAITS,
                )
            self._source.log(f"the push connection dropped; again in {wait:.2f} s: {self._reason}")
            await asyncio.sleep(wait)

    async def _connection(self) -> None:
        """One connection, until it is over.

        Raises:
            TransientError: it is over, and another one may do better.
            BaseError: it was refused for good.
        """
        self._state = StreamState.CONNECTING
        try:
            socket = await self._source.connect()
            try:
                await self._converse(socket)
            finally:
                await socket.close()
        finally:
            self._state = StreamState.WAITING
            task, self._catching_up = self._catching_up, None
            if task is not None:
                task.cancel()

    async def _converse(self, socket: PushSocket) -> None:
        """Log in, subscribe, and take what arrives until the connection is over."""
        await self._say(socket, self._source.login())
        await self._accepted(socket, "auth")
        self._clock_used = False
        await self._say(socket, subscribe_message())
        await self._accepted(socket, "sub")
        self._state = StreamState.LIVE
        self._connections += 1
        if self._doubted_since is not None:
            self.doubt()
        while True:
            reply = await self._reply(socket)
            if reply.refusal is not None:
                raise _refused(reply.refusal)

    async def _accepted(self, socket: PushSocket, op: str) -> None:
        """Wait until the venue accepts our message."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                while True:
                    reply = await self._reply(socket)
                    self._check(reply)
                    if reply.op == op:
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
            raise TransientError(reply.refusal.error, retry_after=0.0)
        raise _refused(reply.refusal)

    def _clock_is_to_blame(self, error: BaseError, venue_time: int | None) -> bool:
        """Whether the venue's clock differs from ours and was not used yet; it is from now."""
        its_kind = isinstance(error, InvalidNonce) or type(error) is AuthenticationError
        if venue_time is None or self._clock_used or not its_kind:
            return False
        ahead = self._source.clock_ahead(venue_time)
        off = CLOCK_OFF_MS if isinstance(error, InvalidNonce) else _CLOCK_TO_BLAME_MS
        if abs(ahead) <= off:
            return False
        self._clock_used = True
        self._source.use_clock(venue_time)
        self._source.log(f"{clock_text(ahead)}: {error}")
        return True

    async def _reply(self, socket: PushSocket) -> Reply:
        """The next answer to one of our messages; whatever else arrives is dealt with."""
        while True:
            try:
                message = read_message(await self._received(socket))
                if isinstance(message, AccountNews):
                    self._take(message)
            except (BadResponse, ValueError, ArithmeticError, RecursionError) as error:
                self._complain(error if isinstance(error, BadResponse) else BadResponse(str(error)))
                continue
            if isinstance(message, Reply):
                return message
            if isinstance(message, Closing):
                raise TransientError(ExchangeNotAvailable("the venue is closing the connection"))
            if isinstance(message, Ping):
                await self._say(socket, pong_message(message))

    async def _say(self, socket: PushSocket, text: str) -> None:
        await self._in_time(socket.send(text), "the venue takes no message")

    async def _received(self, socket: PushSocket) -> bytes:
        return await self._in_time(socket.receive(), "no heartbeat")

    async def _in_time(self, work: Coroutine[Any, Any, Result], otherwise: str) -> Result:
        silence = self._settings.silence
        try:
            async with asyncio.timeout(silence):
                return await work
        except TimeoutError:
            raise TransientError(
                NetworkError(f"{otherwise} for {silence * 1000:g} ms (streamSilenceTimeout)")
            ) from None

    def _clean(self, error: Exception) -> BaseError:
        """The error as users may see it: no secret in it, and no frames behind it."""
        if isinstance(error, TransientError):
            error = error.error
        text = self._source.cleaned(str(error))[:_MAX_REASON]
        if isinstance(error, BaseError):
            return type(error)(text)
        return ExchangeError(f"the stream broke: {type(error).__name__}: {text}")


def _goes_back(value: int | None, last: int | None) -> bool:
    return value is not None and last is not None and value < last


def _refused(refusal: Refusal) -> BaseError | TransientError:
    return TransientError(refusal.error) if refusal.transient else refusal.error


def _anew(error: BaseError) -> BaseError:
    return type(error)(str(error))
