"""The newest account over the push channel: connect, log in, subscribe, and reconnect.

The newest account is *in doubt* at the start, after a dropped connection, after an unreadable
message, and after a message that is older than the previous one. A newer account ends the doubt. If
none is pushed within the snapshot timeout, the account is read over REST. If that fails until the
gap timeout, callers get a ``NetworkError``. So no change is missed, and an older account is never
published.

No message ends the stream. It ends when it is closed, or when the venue refuses it permanently.
"""

import asyncio
import copy
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
from sunx_adapter.protocol.account import AccountAnswer
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.protocol.push import (
    AccountUpdate,
    Closing,
    Ping,
    Reply,
    pong_message,
    read_message,
    subscribe_message,
)
from sunx_adapter.stream import StreamSettings, StreamSource, StreamState, StreamStatus
from sunx_adapter.stream.cursor import Cursor, PublishedAccount
from sunx_adapter.wire.websocket import PushSocket

Result = TypeVar("Result")

_KEY_REFUSED_CLOCK_OFF_MS: Final = 60_000
"""If a key is refused and the clocks differ by more than this, the time may be the reason (the
venue accepts 5 minutes). Then the login is repeated with the venue's time."""

_MAX_AHEAD_MS: Final = 300_000
"""A time further in the future is ignored: no later account would count as newer."""

_STABLE_SECONDS: Final = 10.0
"""After a connection that lasted longer, the next wait is the shortest one again."""

_RECHECK_SECONDS: Final = 0.1
"""The shortest time after which a waiting call checks again for a doubt."""

_MAX_WAITS: Final = 25
"""The wait before reconnecting doubles, up to this multiple of the first wait."""


class AccountStream:
    """The newest account, kept current by a background task. It belongs to one event loop.

    Args:
        source: the functions of its exchange.
        settings: its timeouts and waits.
        numbers: the numbers for published accounts.
        before: the stream that this one replaces, if both have the same account.

    Attributes:
        loop: the event loop of the stream.
    """

    def __init__(
        self,
        source: StreamSource,
        settings: StreamSettings,
        numbers: Iterator[int],
        before: "AccountStream | None",
    ) -> None:
        self._source = source
        self._settings = settings
        self._numbers = numbers
        self.loop = asyncio.get_running_loop()
        # The reason for its end, and whether a call has raised it.
        self._failure: BaseError | None = None
        self._failure_raised = False
        self._state = StreamState.CONNECTING
        self._connections = 0
        self._reason: BaseError | None = None
        # The newest account, and the version and time that later accounts are compared with.
        self._newest: PublishedAccount | None = None
        self._version: int | None = None if before is None else before._version
        self._timestamp: int | None = None if before is None else before._timestamp
        self._fresh_at: float | None = None
        self._doubted_since: float | None = self.loop.time()
        # Waiting calls; and, if there were none, the error for the next call.
        self._waiting: set[asyncio.Future[BaseError | None]] = set()
        self._unreported: BaseError | None = None
        self._clock_used = False
        self._key_refused = False
        self._catching_up: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._run()).add_done_callback(self._interrupted)

    # -- for callers ------------------------------------------------------------------------

    async def next(self, cursor: Cursor) -> PublishedAccount:
        """Wait for an account newer than the cursor, and move the cursor to it.

        Raises:
            NetworkError: the newest account has been in doubt for the gap timeout.
            BadResponse: a message was unreadable, during the call or since the previous one.
            BaseError: the stream has ended.
        """
        began, error, seen = self.loop.time(), None, cursor.seen
        while self._newest is None or self._newest.number <= seen:
            if error is None:
                error, self._unreported = self._unreported, None
            if error is None and self._failure is not None:
                error, self._failure_raised = self._failure, True
            if error is not None:
                raise copy.copy(error)  # each caller gets its own copy
            error = await self._change(began)
        cursor.seen = max(cursor.seen, self._newest.number)
        return self._newest

    async def _change(self, began: float) -> BaseError | None:
        """Wait for a change; returns the error if an unreadable message ends the wait.

        Args:
            began: when the call began, on the event loop's clock.
        """
        now, gap, since = self.loop.time(), self._settings.gap, self._doubted_since
        # If there is no doubt now, check again later: one may begin meanwhile.
        wait = max(gap, _RECHECK_SECONDS) if since is None else max(began, since) + gap - now
        if wait <= 0:
            kind = type(self._reason) if isinstance(self._reason, NetworkError) else NetworkError
            raise kind(
                f"no balance for {gap * 1000:g} ms (streamGapTimeout), still reconnecting: "
                f"{self._reason or 'nothing arrived'}"
            )
        changed = self.loop.create_future()
        self._waiting.add(changed)
        try:
            await asyncio.wait([changed], timeout=wait)
            return changed.result() if changed.done() else None
        finally:
            self._waiting.discard(changed)

    def doubt(self, reason: BaseError | TransientError | None = None) -> None:
        """Mark the newest account as possibly stale."""
        if reason is not None:
            self._reason = self._source.redacted(reason)
        if self._doubted_since is None:
            self._doubted_since = self.loop.time()
        if self._state is StreamState.LIVE and (
            self._catching_up is None or self._catching_up.done()
        ):
            self._catching_up = self._start(self._catch_up())

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a call in this event loop can use the stream; if not, it needs a new one."""
        if self._key_refused and self._state is StreamState.REFUSED:
            return True
        return self.loop is loop and not (self._failure and self._failure_raised)

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
        if self._failure is None:
            self._failure = ExchangeClosedByUser("the stream was closed")
        self._state = StreamState.OFF
        self._wake()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- the newest account -----------------------------------------------------------------

    def _wake(self, error: BaseError | None = None) -> None:
        waiting, self._waiting = self._waiting, set()
        for changed in waiting:
            changed.set_result(error)

    def _report(self, failure: Exception) -> None:
        """Raise the failure in all waiting calls, or in the next call if none waits."""
        error = self._source.redacted(failure)
        if self._waiting:
            self._wake(error)
        else:
            self._unreported = error
        self.doubt(error)

    def _take(self, answer: AccountAnswer, version: int | None, *, pushed: bool) -> bool:
        """Publish an account and end the doubt; returns False for an older account."""
        timestamp = answer.timestamp
        if _is_older(version, self._version) or _is_older(timestamp, self._timestamp):
            return False
        # The snapshot after a reconnection repeats the account if nothing has changed.
        repeats = (
            self._newest is not None
            and version is not None
            and version == self._version
            and answer.info["data"] == self._newest.copy().info["data"]
        )
        # After a read (without a version), any version may follow.
        self._version = version
        if timestamp and self._source.clock_ahead(timestamp) > -_MAX_AHEAD_MS:
            self._timestamp = timestamp
        self._fresh_at, self._doubted_since = self.loop.time(), None
        self._stop_catching_up()
        if not repeats:
            self._newest = PublishedAccount(answer, next(self._numbers), pushed=pushed)
            self._unreported = None
            self._wake()
        return True

    def _stop_catching_up(self) -> None:
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
                if self._take(answer, None, pushed=False):
                    return
                raise NetworkError("the account read over REST is older than the pushed one")
            except Exception as error:  # noqa: BLE001 - the stream goes on
                self._reason = self._source.redacted(error)
                self._source.warn(f"the account could not be read after a gap: {self._reason}")
                if isinstance(self._reason, BadResponse):
                    self._report(self._reason)
            wait = max(self._settings.snapshot, backoff(failures))

    # -- the connection ---------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _interrupted(self, _: object) -> None:
        if self._failure is None:  # cancelled by others: the next call starts a new stream
            self._failure = NetworkError("the task of the stream was cancelled")
            self._failure_raised = True
            self._state = StreamState.OFF
            self._wake()

    def _end(self, error: BaseError) -> None:
        failure = self._source.redacted(error)
        if self._key_refused:
            failure = AuthenticationError(f"{failure}; it is not tried again with the same key")
        self._failure = self._reason = failure
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
            except Exception as error:  # noqa: BLE001 - a bug must not end the stream
                self._report(error)
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
            TransientError: it ended, and another connection may succeed.
            BaseError: the venue refused it permanently.
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
            self._stop_catching_up()

    async def _converse(self, socket: PushSocket) -> None:
        """Log in, subscribe, and take messages until the connection ends."""
        await self._ask(socket, "auth", self._source.login())
        self._clock_used = False
        await self._ask(socket, "sub", subscribe_message())
        self._state = StreamState.LIVE
        self._connections += 1
        if self._doubted_since is not None:
            self.doubt()
        while True:
            reply = await self._reply(socket)
            if reply.refusal is not None:
                raise reply.refusal

    async def _ask(self, socket: PushSocket, op: str, message: str) -> None:
        """Send a message, and wait until the venue accepts it."""
        seconds = self._settings.timeout
        await self._send(socket, message)
        late = RequestTimeout(f"no answer to {op} within {seconds * 1000:g} ms (timeout)")
        await self._in_time(self._accepted(socket, op), seconds, late)

    async def _accepted(self, socket: PushSocket, op: str) -> None:
        while True:
            reply = await self._reply(socket)
            if (refusal := reply.refusal) is not None:
                if reply.op == "auth" and self._clock_adjusted(refusal, reply.ts):
                    refusal = TransientError(refusal, retry_after=0.0)
                self._key_refused = type(refusal) is AuthenticationError
                raise refusal
            if reply.op == op:
                return

    def _clock_adjusted(self, error: Exception, venue_time: int | None) -> bool:
        """Use the venue's clock if ours may be the reason for the refusal, once per login."""
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
                body = await self._in_silence(socket.receive(), "no heartbeat")
                await asyncio.sleep(0)  # lets other tasks run, even during a flood of messages
                message = read_message(body)
                if isinstance(message, AccountUpdate) and not self._take(
                    message.answer, message.version, pushed=True
                ):
                    self.doubt()
            except (BadResponse, ValueError, ArithmeticError, RecursionError) as error:
                self._report(error if isinstance(error, BadResponse) else BadResponse(str(error)))
                continue
            if isinstance(message, Reply):
                return message
            if isinstance(message, Closing):
                raise TransientError(ExchangeNotAvailable("the venue is closing the connection"))
            if isinstance(message, Ping):
                await self._send(socket, pong_message(message))

    async def _send(self, socket: PushSocket, text: str) -> None:
        await self._in_silence(socket.send(text), "the venue accepted no message")

    async def _in_silence(self, work: Coroutine[Any, Any, Result], otherwise: str) -> Result:
        silence = self._settings.silence
        text = f"{otherwise} for {silence * 1000:g} ms (streamSilenceTimeout)"
        return await self._in_time(work, silence, NetworkError(text))

    async def _in_time(
        self, work: Coroutine[Any, Any, Result], seconds: float, late: BaseError
    ) -> Result:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise TransientError(late) from None
        except OSError as error:
            raise TransientError(NetworkError(str(error))) from None


def _is_older(value: int | None, last: int | None) -> bool:
    return value is not None and last is not None and value < last
