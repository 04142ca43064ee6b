"""The newest account over the push channel: connect, log in, subscribe, and reconnect.

The newest account is *in doubt* at the start, after a dropped connection, after a message that
cannot be read and after a message that is older than the one before. A newer account ends the
doubt. If none is pushed within the snapshot timeout, the account is read over REST. If that does
not help within the gap timeout, callers get a ``NetworkError``. So no change is missed, however
it was lost, and an older account is never published.

No message ends the stream. It ends when it is closed or permanently refused.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from ccxt.base.errors import (
    AuthenticationError,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    ExchangeNotAvailable,
    InvalidNonce,
    NetworkError,
    RequestTimeout,
)

from sunx_adapter.exchange.retry import CLOCK_OFF_MS, backoff, clock_text
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
from sunx_adapter.stream import StreamSettings, StreamSource, StreamState, StreamStatus
from sunx_adapter.stream.cursor import Cursor, News
from sunx_adapter.wire.websocket import PushSocket

Result = TypeVar("Result")

_KEY_REFUSED_CLOCK_OFF_MS: Final = 60_000
"""If a key is refused, a clock that differs by more may be the reason: the venue accepts 5 minutes.
The login is then repeated with the venue's time."""

_MAX_AHEAD_MS: Final = 300_000
"""A time further in the future is not compared with later ones: it would hide all of them."""

_LARGE_MESSAGE: Final = 65_536
"""After a larger message other tasks get their turn, so that a flood does not block them."""

_STABLE_SECONDS: Final = 10.0
"""After a connection that lived for so long, the next wait is the shortest one again."""

_MAX_WAITS: Final = 25
"""The wait before reconnecting doubles, up to this multiple of the first one."""


class AccountStream:
    """The newest account, kept current by a background task. It belongs to one event loop.

    Args:
        source: its exchange.
        settings: its timeouts and waits.
        numbers: numbers the accounts that are published.

    Attributes:
        loop: the event loop in which it was made.
        failure: why it ended; ``None`` while it runs.
        failure_raised: whether a caller got the failure.
    """

    def __init__(
        self, source: StreamSource, settings: StreamSettings, numbers: Iterator[int]
    ) -> None:
        self._source = source
        self._settings = settings
        self._numbers = numbers
        self.loop = asyncio.get_running_loop()
        self.failure: BaseError | None = None
        self.failure_raised = False
        self._state = StreamState.CONNECTING
        self._connections = 0
        self._reason: BaseError | None = None
        # The newest account, and what it was published as.
        self._news: News | None = None
        self._number = 0
        self._version: int | None = None
        self._timestamp: int | None = None
        self._data: object = None
        self._fresh_at: float | None = None
        self._doubted_since: float | None = self.loop.time()
        # Callers, and the latest unreadable message that they are to hear of.
        self._waiting = 0
        self._complaint = BaseError()
        self._complaints = 0
        self._complaint_pending = False
        self._changed = asyncio.Event()
        self._clock_used = False
        self._key_refused = False
        self._catching_up: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._run()).add_done_callback(self._interrupted)

    # -- for callers ------------------------------------------------------------------------

    async def next(self, cursor: Cursor) -> News:
        """Wait for an account newer than the cursor, and move the cursor to it.

        Raises:
            NetworkError: the newest account has been in doubt for the gap timeout.
            BadResponse: a message could not be read, during the call or since the last one.
            BaseError: the stream has ended.
        """
        began = self.loop.time()
        complaints = self._complaints - self._complaint_pending
        self._waiting += 1
        try:
            while self._news is None or self._number <= cursor.seen:
                if complaints != self._complaints:
                    self._complaint_pending = False
                    raise _copy(self._complaint)
                if self.failure is not None:
                    self.failure_raised = True
                    raise _copy(self.failure)
                await self._change(began)
        finally:
            self._waiting -= 1
        cursor.seen = self._number
        return self._news

    async def _change(self, began: float) -> None:
        """Wait for a change, for a call that began then."""
        since = self._doubted_since
        deadline = None if since is None else max(began, since) + self._settings.gap
        if deadline is not None and self.loop.time() >= deadline:
            kind = type(self._reason) if isinstance(self._reason, NetworkError) else NetworkError
            raise kind(
                f"no balance for {self._settings.gap * 1000:g} ms (streamGapTimeout), still "
                f"reconnecting: {self._reason or 'nothing arrived'}"
            )
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            pass  # the next round raises, unless the doubt ended meanwhile

    def doubt(self, reason: BaseError | TransientError | None = None) -> None:
        """Mark the newest account as possibly stale."""
        if reason is not None:
            self._reason = self._source.redacted(reason)
        if self._doubted_since is None:
            self._doubted_since = self.loop.time()
            self._wake()
        if self._state is StreamState.LIVE and (
            self._catching_up is None or self._catching_up.done()
        ):
            self._catching_up = self._start(self._catch_up())

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a call in this event loop can use the stream, or a new stream is needed."""
        if self._key_refused:
            return True
        return self.loop is loop and not (self.failure and self.failure_raised)

    def status(self) -> StreamStatus:
        """A snapshot of the connection."""
        now = self.loop.time()
        return StreamStatus(
            state=self._state,
            age=None if self._fresh_at is None else now - self._fresh_at,
            doubted=None if self._doubted_since is None else now - self._doubted_since,
            connections=self._connections,
            reason=None if self._reason is None else str(self._reason),
        )

    async def close(self) -> None:
        """End the stream and wait until its tasks have ended."""
        if self.failure is None:
            self.failure = ExchangeClosedByUser("the stream was closed")
        self._state = StreamState.OFF
        self._wake()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- the newest account -----------------------------------------------------------------

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _publish(self, news: News) -> None:
        self._news = news
        self._number = next(self._numbers)
        self._complaint_pending = False
        self._wake()

    def _complain(self, failure: BaseError) -> None:
        """Raise this in all waiting calls, or else in the next call."""
        self.doubt(failure)
        self._complaint = self._reason or failure
        self._complaints += 1
        self._complaint_pending = not self._waiting
        self._wake()

    def _take(self, message: AccountNews) -> None:
        version, timestamp = message.version, message.answer.timestamp
        if _is_older(version, self._version) or _is_older(timestamp, self._timestamp):
            self.doubt()
            return
        data = message.answer.info["data"]
        # The snapshot after a reconnection repeats the account if nothing happened.
        repeats = version is not None and version == self._version and data == self._data
        self._version, self._data = version, data
        self._remember(timestamp)
        self._end_doubt()
        if not repeats:
            self._publish(News(message.answer, pushed=True))

    def _remember(self, timestamp: int | None) -> None:
        if timestamp and self._source.clock_ahead(timestamp) > -_MAX_AHEAD_MS:
            self._timestamp = timestamp

    def _end_doubt(self) -> None:
        self._fresh_at = self.loop.time()
        self._doubted_since = None
        task, self._catching_up = self._catching_up, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _catch_up(self) -> None:
        """Read the account over REST until something ends the doubt."""
        wait = self._settings.snapshot
        for failures in itertools.count(1):
            await asyncio.sleep(wait)
            try:
                answer = await self._source.read()
                if _is_older(answer.timestamp, self._timestamp):
                    raise NetworkError("the account read over REST is older than the pushed one")
            except Exception as error:  # noqa: BLE001 - the stream goes on
                self._reason = self._source.redacted(error)
                self._source.warn(f"the account could not be read after a gap: {self._reason}")
                if isinstance(self._reason, BadResponse):
                    self._complain(self._reason)
            else:
                # The next pushed account may count its versions anew.
                self._version = self._data = None
                self._remember(answer.timestamp)
                self._end_doubt()
                self._publish(News(answer, pushed=False))
                return
            wait = max(self._settings.snapshot, backoff(failures))

    # -- the connection ---------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _interrupted(self, _: object) -> None:
        if self.failure is None:  # not closed, but cancelled by others: the next call starts anew
            self.failure = NetworkError("the task of the stream was cancelled")
            self.failure_raised = True
            self._state = StreamState.OFF
            self._wake()

    def _end(self, error: BaseError) -> None:
        failure = self._source.redacted(error)
        if self._key_refused:
            failure = AuthenticationError(f"{failure}; it is not tried again with the same key")
        self.failure = self._reason = failure
        self._state = StreamState.REFUSED
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._wake()

    async def _run(self) -> None:
        failures = 0
        while True:
            began, wait = self.loop.time(), None
            try:
                await self._connection()
            except TransientError as error:
                self.doubt(error)
                wait = error.retry_after
            except BaseError as error:
                self._end(error)
                return
            except Exception as error:  # noqa: BLE001 - no fault of this program ends the stream
                self._complain(self._source.redacted(error))
            failures = 1 if self.loop.time() - began > _STABLE_SECONDS else failures + 1
            if wait is None:
                first = self._settings.first_wait
                wait = min(backoff(failures, first), first * _MAX_WAITS)
            self._source.warn(
                f"the push connection dropped; reconnecting in {wait:.2f} s: {self._reason}"
            )
            await asyncio.sleep(wait)

    async def _connection(self) -> None:
        """One connection, until it ends.

        Raises:
            TransientError: it ended, and another one may succeed.
            BaseError: it was permanently refused.
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
        """Log in, subscribe, and take messages until the connection ends."""
        await self._send(socket, self._source.login())
        await self._accepted(socket, "auth")
        self._clock_used = False
        await self._send(socket, subscribe_message())
        await self._accepted(socket, "sub")
        self._state = StreamState.LIVE
        self._connections += 1
        if self._doubted_since is not None:
            self.doubt()
        while True:
            reply = await self._reply(socket)
            if reply.refusal is not None:
                raise _error_of(reply.refusal)

    async def _accepted(self, socket: PushSocket, op: str) -> None:
        """Wait until the venue accepts our message."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                while True:
                    reply = await self._reply(socket)
                    if (refusal := reply.refusal) is not None:
                        if reply.op == "auth" and self._clock_adjusted(refusal.error, reply.ts):
                            raise TransientError(refusal.error, retry_after=0.0)
                        self._key_refused = type(refusal.error) is AuthenticationError
                        raise _error_of(refusal)
                    if reply.op == op:
                        return
        except TimeoutError:
            milliseconds = self._settings.timeout * 1000
            raise TransientError(
                RequestTimeout(f"no answer to {op} within {milliseconds:g} ms (timeout)")
            ) from None

    def _clock_adjusted(self, error: BaseError, venue_time: int | None) -> bool:
        """Use the venue's clock, once per login, if ours may be the reason for the refusal."""
        clock_refused = isinstance(error, InvalidNonce)
        key_refused = type(error) is AuthenticationError
        if venue_time is None or self._clock_used or not (clock_refused or key_refused):
            return False
        ahead = self._source.clock_ahead(venue_time)
        if abs(ahead) <= (CLOCK_OFF_MS if clock_refused else _KEY_REFUSED_CLOCK_OFF_MS):
            return False
        self._clock_used = True
        self._source.use_clock(venue_time)
        self._source.warn(f"{clock_text(ahead)}: {error}")
        return True

    async def _reply(self, socket: PushSocket) -> Reply:
        """The next reply to one of our messages; other messages are handled here."""
        while True:
            try:
                body = await self._in_time(socket.receive(), "no heartbeat")
                if len(body) > _LARGE_MESSAGE:
                    await asyncio.sleep(0)
                message = read_message(body)
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
                await self._send(socket, pong_message(message))

    async def _send(self, socket: PushSocket, text: str) -> None:
        await self._in_time(socket.send(text), "the venue accepted no message")

    async def _in_time(self, work: Coroutine[Any, Any, Result], otherwise: str) -> Result:
        silence = self._settings.silence
        try:
            async with asyncio.timeout(silence):
                return await work
        except TimeoutError:
            raise TransientError(
                NetworkError(f"{otherwise} for {silence * 1000:g} ms (streamSilenceTimeout)")
            ) from None
        except OSError as error:
            raise TransientError(NetworkError(str(error))) from None


def _is_older(value: int | None, last: int | None) -> bool:
    return value is not None and last is not None and value < last


def _error_of(refusal: Refusal) -> BaseError | TransientError:
    return TransientError(refusal.error) if refusal.transient else refusal.error


def _copy(error: BaseError) -> BaseError:
    return type(error)(str(error))
