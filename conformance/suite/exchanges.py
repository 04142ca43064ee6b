"""Exchanges under test: made by the host, pointed at a playing server, called in either way."""

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from suite.playback import Play, Playback, Request
from suite.vectors import SERVER, Collection, Played, Variant
from sunx_adapter.host import ExchangeHost

FaceName = Literal["sync", "async"]


class Face(Protocol):
    """One of ccxt's two ways to call an exchange."""

    name: FaceName

    def run(self, action: Callable[[], Any]) -> Any:
        """What the action gives, waited for if need be."""
        ...

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the actions give, all of them under way at once."""
        ...


class SyncFace:
    """ccxt's synchronous exchanges; several at once in threads."""

    name: FaceName = "sync"

    def run(self, action: Callable[[], Any]) -> Any:
        """What the action gives."""
        return action()

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the actions give, each in a thread of its own."""
        with ThreadPoolExecutor(len(actions)) as threads:
            return list(threads.map(lambda action: action(), actions))


class AsyncFace:
    """ccxt's asynchronous exchanges, all in one event loop. A context manager."""

    name: FaceName = "async"

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.close()

    def run(self, action: Callable[[], Any]) -> Any:
        """What the action gives, awaited where it is awaitable."""
        return self._runner.run(_awaited(action))

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the actions give, as tasks of one event loop."""

        async def gathered() -> list[Any]:
            return list(await asyncio.gather(*map(_awaited, actions)))

        return self._runner.run(gathered())


async def _awaited(action: Callable[[], Any]) -> Any:
    result = action()
    return await result if isinstance(result, Awaitable) else result


@dataclass(frozen=True)
class Opened:
    """An exchange that talks to a play.

    Attributes:
        exchange: as the host made it.
        play: the server behind it.
        face: how it is called.
    """

    exchange: Any
    play: Play
    face: Face

    def call(self, method: str, *args: object, **kwargs: object) -> Any:
        """What a method of the exchange gives."""
        return self.face.run(lambda: getattr(self.exchange, method)(*args, **kwargs))


@dataclass(frozen=True)
class Outcome:
    """What one call gave.

    Attributes:
        balance: the balance; ``None`` if the call failed.
        error: the exception; ``None`` if the call did not fail.
        requests: what was sent.
        log: every log line that was written meanwhile, of any level.
    """

    balance: dict[str, Any] | None
    error: Exception | None
    requests: tuple[Request, ...]
    log: str

    def given_balance(self) -> dict[str, Any]:
        """The balance; a call that failed fails again."""
        if self.error is not None:
            raise self.error
        assert self.balance is not None, "fetch_balance() gave None"
        return self.balance


class Bench:
    """One exchange, called in one way, with the vectors to play to it.

    Args:
        exchange_id: as the host knows it.
        face: how it is called.
        collection: the vectors and how the exchange is configured for them.
        playback: where they are played.
    """

    def __init__(
        self, exchange_id: str, face: Face, collection: Collection, playback: Playback
    ) -> None:
        self.exchange_id = exchange_id
        self.face = face
        self.collection = collection
        self._playback = playback
        self._host = ExchangeHost()
        self._outcomes: dict[tuple[str, type | None], Outcome] = {}

    def config(self, played: Played | None, address: str, **extra: object) -> dict[str, Any]:
        """The configuration for a vector, with the server's address filled in."""
        settings = self.collection.settings
        config: Mapping[str, Any] = settings.config
        if played is not None:
            config = _merged(config, self.variant(played).config)
            config = _merged(config, played.vector.config)
        return dict(_filled({**config, **extra}, address))

    def variant(self, played: Played) -> Variant:
        """The path variant over which a vector is played."""
        if played.variant is None:
            return Variant()
        return self.collection.settings.variants[played.variant]

    @contextlib.contextmanager
    def opened(self, played: Played | None = None, **extra: object) -> Iterator[Opened]:
        """An exchange with a server behind it, both closed in the end.

        Args:
            played: what the server plays; without it, it answers with an empty object.
            extra: further configuration (``number=Decimal``).
        """
        vector = played.vector if played else None
        with self._playback.playing(vector, self.collection.settings.answers) as play:
            config = self.config(played, play.address, **extra)
            exchange = self.face.run(lambda: self._make(config))
            try:
                yield Opened(exchange, play, self.face)
            finally:
                if hasattr(exchange, "close"):
                    self.face.run(exchange.close)

    def _make(self, config: dict[str, Any]) -> Any:
        return self._host.create(self.exchange_id, config, self.face.name == "async")

    def outcome(self, played: Played, number: type | None) -> Outcome:
        """What ``fetch_balance()`` gives for a vector; asked once, then remembered.

        Args:
            played: the vector.
            number: the configuration's ``number``; ``None`` to leave it out.
        """
        key = (str(played), number)
        if key not in self._outcomes:
            self._outcomes[key] = self._ask(played, number)
        return self._outcomes[key]

    def _ask(self, played: Played, number: type | None) -> Outcome:
        extra = {} if number is None else {"number": number}
        balance = failure = None
        requests: list[Request] = []
        with _log_lines() as log:
            try:
                with self.opened(played, **extra) as opened:
                    requests = opened.play.requests
                    balance = opened.call("fetch_balance", *played.vector.arguments())
            except Exception as error:  # noqa: BLE001 - the vector says which it must be
                failure = error
        return Outcome(balance, failure, tuple(requests), "\n".join(log))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def _filled(value: Any, address: str) -> Any:
    if isinstance(value, str):
        return value.replace(SERVER, address)
    if isinstance(value, Mapping):
        return {key: _filled(item, address) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, address) for item in value]
    return value


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def _log_lines() -> Iterator[list[str]]:
    root = logging.getLogger()
    level, handler = root.level, _Lines()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


_SAMPLES: Mapping[str, object] = {
    "symbol": "BTC/USDT:USDT",
    "symbols": ["BTC/USDT:USDT"],
    "symbolsAndTimeframes": [["BTC/USDT:USDT", "1m"]],
    "code": "USDT",
    "codes": ["USDT"],
    "fromCode": "USDT",
    "toCode": "BTC",
    "type": "limit",
    "side": "buy",
    "timeframe": "1m",
    "marginMode": "cross",
    "hedged": True,
    "orders": [
        {"symbol": "BTC/USDT:USDT", "type": "limit", "side": "buy", "amount": 1.0, "price": 1.0}
    ],
    "ids": ["1"],
    "params": {},
}


def sample_arguments(method: Callable[..., Any]) -> dict[str, object]:
    """Plausible arguments for any of ccxt's methods, by the names of its parameters.

    Optional ones are given too: some of ccxt's methods look at them before anything else.
    """
    return {
        name: _sample(name, str(parameter.annotation))
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _sample(name: str, annotation: str) -> object:
    if name in _SAMPLES:
        # ccxt's methods change what they are given.
        return copy.deepcopy(_SAMPLES[name])
    return "1" if "str" in annotation else 1.0
