"""The push channel: the newest account, kept current by one connection per exchange.

This module has the shared types. The other modules: ``account`` (the connections of a stream, and
the newest account), ``cursor`` (the account that each caller got last) and ``watch`` (the stream of
one exchange).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ccxt.base.errors import BaseError

    from sunx_adapter.protocol.account import AccountAnswer
    from sunx_adapter.wire.websocket import PushSocket

STREAM_DEFAULTS: Final[dict[str, float]] = {
    "streamGapTimeout": 30_000,
    "streamSilenceTimeout": 20_000,
    "streamSnapshotTimeout": 1_000,
    "streamReconnectDelay": 200,
}
"""The options of the stream and their defaults, in ms; :class:`StreamSettings` explains them."""


class StreamState(Enum):
    """The state of the push connection."""

    OFF = "off"
    """Not used yet, or closed."""
    CONNECTING = "connecting"
    """Connecting, logging in or subscribing."""
    LIVE = "live"
    """Subscribed."""
    WAITING = "waiting"
    """Dropped; waiting to reconnect."""
    REFUSED = "refused"
    """Ended by a permanent refusal."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A snapshot of the push connection.

    Attributes:
        state: the connection's state.
        age: seconds since the account was last known to be current; ``None`` before the first.
        doubted: seconds since a change may have been missed; ``None`` if none was.
        connections: how many connections got as far as subscribing.
        reason: the latest drop or refusal, without secrets; ``None`` before the first.
    """

    state: StreamState = StreamState.OFF
    age: float | None = None
    doubted: float | None = None
    connections: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The stream's timeouts and waits, in seconds.

    Attributes:
        timeout: for connecting, and for each answer of the venue (``timeout``).
        gap: how long a caller waits for a fresh balance (``streamGapTimeout``).
        silence: how long the venue may send nothing (it sends a heartbeat about every 5 s), or
            accept no message (``streamSilenceTimeout``).
        snapshot: how long to wait for a snapshot before the account is read over REST
            (``streamSnapshotTimeout``).
        first_wait: the longest wait before the first reconnection; waits double, up to 25 times
            this value and at most 5 s (``streamReconnectDelay``).
    """

    timeout: float
    gap: float
    silence: float
    snapshot: float
    first_wait: float

    @classmethod
    def of(cls, options: Mapping[str, Any], timeout_ms: float) -> "StreamSettings":
        """The settings of an exchange with these ``options`` and this ``timeout``."""
        waits = (options.get(name, default) for name, default in STREAM_DEFAULTS.items())
        return cls(timeout_ms / 1000, *(milliseconds / 1000 for milliseconds in waits))


@dataclass(frozen=True, slots=True)
class StreamSource:
    """The functions that a stream needs from its exchange.

    Attributes:
        identity: returns the keys and addresses in use; a stream ends when they change. Raises
            BaseError if the exchange's configuration does not allow streams.
        settings: returns the present settings.
        connect: opens a connection.
        login: returns the login message, signed with the current time.
        read: reads the account over REST.
        clock_ahead: returns how many ms our clock is ahead of a venue's time (ms UTC).
        use_clock: sets the exchange's clock to a venue's time (ms UTC).
        redacted: returns a copy of an exception, as one of ccxt's classes and without secrets.
        warn: logs a text at WARNING, without secrets.
    """

    identity: Callable[[], object]
    settings: Callable[[], StreamSettings]
    connect: Callable[[], "Awaitable[PushSocket]"]
    login: Callable[[], str]
    read: Callable[[], "Awaitable[AccountAnswer]"]
    clock_ahead: Callable[[int], int]
    use_clock: Callable[[int], object]
    redacted: Callable[[Exception], "BaseError"]
    warn: Callable[[str], None]
