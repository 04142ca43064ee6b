"""Exchanges under test, synchronous or asynchronous, made by the host with a server's address."""

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

from suite.server import Request, ServerThread, VectorServer
from suite.vectors import SERVER, Case, Collection, Variant
from sunx_adapter.host import ExchangeHost

Mode = Literal["sync", "async"]


class Runner(Protocol):
    """Runs calls of one of ccxt's two kinds of exchange."""

    mode: Mode

    def run(self, action: Callable[[], Any]) -> Any:
        """Run the action and wait for its result."""
        ...

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all actions at once and wait for their results."""
        ...


class SyncRunner:
    """For synchronous exchanges; concurrent calls run in threads."""

    mode: Mode = "sync"

    def run(self, action: Callable[[], Any]) -> Any:
        """Run the action."""
        return action()

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run each action in its own thread."""
        with ThreadPoolExecutor(len(actions)) as threads:
            return list(threads.map(lambda action: action(), actions))


class AsyncRunner:
    """For asynchronous exchanges, all in one event loop. A context manager."""

    mode: Mode = "async"

    def __init__(self) -> None:
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.close()

    def run(self, action: Callable[[], Any]) -> Any:
        """Run the action; a result that can be awaited is awaited."""
        # Not Runner.run(), which sets a signal handler each time: that is slow.
        return self._loop.get_loop().run_until_complete(_awaited(action))

    def run_together(self, actions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the actions as tasks of the event loop."""

        async def gathered() -> list[Any]:
            return list(await asyncio.gather(*map(_awaited, actions)))

        return self._loop.run(gathered())


async def _awaited(action: Callable[[], Any]) -> Any:
    result = action()
    return await result if isinstance(result, Awaitable) else result


@dataclass(frozen=True)
class Opened:
    """An exchange and the server that it is connected to.

    Attributes:
        exchange: the exchange, made by the host.
        server: the server, which sends one vector.
        runner: calls the exchange's methods.
    """

    exchange: Any
    server: VectorServer
    runner: Runner

    def call(self, method: str, *args: object, **kwargs: object) -> Any:
        """Call a method of the exchange and wait for its result."""
        return self.runner.run(lambda: getattr(self.exchange, method)(*args, **kwargs))


@dataclass(frozen=True)
class Outcome:
    """The outcome of one call.

    Attributes:
        balance: the balance; ``None`` if the call failed.
        error: the exception; ``None`` if the call did not fail.
        requests: the requests that the server received.
        log: all log lines of the call, of every level.
    """

    balance: dict[str, Any] | None
    error: Exception | None
    requests: tuple[Request, ...]
    log: str

    def balance_or_raise(self) -> dict[str, Any]:
        """The balance; raises the call's exception if it failed."""
        if self.error is not None:
            raise self.error
        assert self.balance is not None, "fetch_balance() returned None"
        return self.balance


class ExchangeUnderTest:
    """One exchange, synchronous or asynchronous, and the vectors to test it with.

    Args:
        exchange_id: its id in the host.
        runner: calls its methods.
        collection: the vectors and their settings.
        server_thread: runs the servers.
    """

    def __init__(
        self, exchange_id: str, runner: Runner, collection: Collection, server_thread: ServerThread
    ) -> None:
        self.exchange_id = exchange_id
        self.runner = runner
        self.collection = collection
        self._server_thread = server_thread
        self._host = ExchangeHost()
        self._case: Case | None = None
        self._outcomes: dict[type | None, Outcome] = {}

    def config(self, case: Case | None, address: str, **extra: object) -> dict[str, Any]:
        """The exchange's configuration for a case, with the server's address."""
        settings = self.collection.settings
        config: Mapping[str, Any] = settings.config
        if case is not None:
            config = _merged(config, self.variant(case).config)
            config = _merged(config, case.vector.config)
        return dict(_filled({**config, **extra}, address))

    def variant(self, case: Case) -> Variant:
        """The path variant of a case."""
        if case.variant is None:
            return Variant()
        return self.collection.settings.variants[case.variant]

    @contextlib.contextmanager
    def opened(self, case: Case | None = None, **extra: object) -> Iterator[Opened]:
        """An exchange and its server, both closed at the end.

        Args:
            case: the answer of the server; without one, an empty JSON object.
            extra: further configuration (``number=Decimal``).
        """
        vector = case.vector if case else None
        with self._server_thread.serving(vector, self.collection.settings.answers) as server:
            config = self.config(case, server.address, **extra)
            exchange = self.runner.run(lambda: self._make(config))
            try:
                yield Opened(exchange, server, self.runner)
            finally:
                if hasattr(exchange, "close"):
                    self.runner.run(exchange.close)

    def _make(self, config: dict[str, Any]) -> Any:
        return self._host.create(self.exchange_id, config, self.runner.mode == "async")

    def outcome(self, case: Case, number: type | None) -> Outcome:
        """The outcome of ``fetch_balance()``, remembered until another case is asked for.

        Args:
            case: the vector.
            number: the configuration's ``number``; ``None`` for none.
        """
        if case != self._case:
            self._case, self._outcomes = case, {}
        if number not in self._outcomes:
            self._outcomes[number] = self._fetch(case, number)
        return self._outcomes[number]

    def _fetch(self, case: Case, number: type | None) -> Outcome:
        extra = {} if number is None else {"number": number}
        balance = failure = None
        requests: list[Request] = []
        with _log_lines() as log:
            try:
                with self.opened(case, **extra) as opened:
                    requests = opened.server.requests
                    balance = opened.call("fetch_balance", *case.vector.arguments())
            except Exception as error:  # noqa: BLE001 - checked against the vector
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
    """Plausible arguments for any of ccxt's methods, chosen by the names of its parameters.

    They include optional ones, because some of ccxt's methods check them first.
    """
    return {
        name: _sample(name, str(parameter.annotation))
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _sample(name: str, annotation: str) -> object:
    if name in _SAMPLES:
        # ccxt's methods modify their arguments.
        return copy.deepcopy(_SAMPLES[name])
    return "1" if "str" in annotation else 1.0
