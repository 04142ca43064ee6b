"""Shared by the tests: a sandbox, and one way to call synchronous and asynchronous classes."""

import asyncio
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.traceback import Traceback

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sandbox, Sunx
from sunx_adapter.exchange.budget import SHARED_WINDOWS
from tests import progress
from tests.certificates import make_certificate

PAYLOADS = Path(__file__).parent / "payloads"
KEYS = {"apiKey": "made-up-access-key", "secret": "made-up-secret"}
CLASSES: dict[tuple[str, bool], Any] = {
    ("sunx", False): Sunx,
    ("sunx", True): AsyncSunx,
    ("htxfutures", False): HtxFutures,
    ("htxfutures", True): AsyncHtxFutures,
}


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin that starts long tests first and prints what they do."""
    progress.register(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a script: the tests' processes would ignore Ctrl-C, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two more processes than there are cores, because long tests mostly wait."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return (len(usable(0)) if usable else os.cpu_count() or 1) + 2


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes an exchange, calls one of its methods and closes it, for both kinds of classes."""

    asynchronous: bool

    def __call__(
        self, exchange_id: str, config: dict[str, Any], method: str, *arguments: Any
    ) -> Any:
        """Return the result of one method call, or raise its exception."""
        return self.using(
            exchange_id, config, lambda exchange: getattr(exchange, method)(*arguments)
        )

    def times(self, count: int, exchange_id: str, config: dict[str, Any], method: str) -> list[Any]:
        """Return the results of ``count`` calls of one exchange, in turn."""

        def use(exchange: Any) -> Any:
            if not self.asynchronous:
                return [getattr(exchange, method)() for _ in range(count)]

            async def run() -> list[Any]:
                return [await getattr(exchange, method)() for _ in range(count)]

            return run()

        results: list[Any] = self.using(exchange_id, config, use)
        return results

    def using(self, exchange_id: str, config: dict[str, Any], use: Callable[[Any], Any]) -> Any:
        """Return the result of ``use(exchange)``, awaited if it is awaitable."""
        make = CLASSES[exchange_id, self.asynchronous]
        if not self.asynchronous:
            with make(config) as exchange:
                return use(exchange)

        async def run() -> Any:
            async with make(config) as exchange:
                result = use(exchange)
                return await result if inspect.isawaitable(result) else result

        return asyncio.run(run())


@pytest.fixture(autouse=True)
def whole_budget() -> None:
    """Begin each test with the whole read budget: other tests read other venues."""
    SHARED_WINDOWS.reset()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Run the test with the synchronous, then the asynchronous class."""
    return Caller(request.param)


@pytest.fixture(params=["sunx", "htxfutures"])
def exchange_id(request: pytest.FixtureRequest) -> str:
    """Run the test with each exchange."""
    return str(request.param)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A separate venue for each test, so that its read limit is unused."""
    with Sandbox() as running:
        yield running


def payload(name: str) -> bytes:
    """Return the body of a real answer."""
    return (PAYLOADS / f"{name}.json").read_bytes()


def config_answering(body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a configuration whose transport gives this answer to every request."""

    def answer(request: httpx.Request) -> httpx.Response:  # noqa: ARG001
        return httpx.Response(200, content=body, headers=headers)

    return {**KEYS, "options": {"transport": httpx.MockTransport(answer)}}


def config_for(address: str, **more: Any) -> dict[str, Any]:
    """Return a configuration for a server at this address, without read limit and retries.

    Args:
        address: base URL of the REST API.
        more: further configuration; its ``options`` are merged.
    """
    return {
        **KEYS,
        "enableRateLimit": False,
        "urls": {"api": {"rest": address}},
        **more,
        "options": {"maxRetriesOnFailure": 0, **more.get("options", {})},
    }


def frames_of(error: BaseException) -> str:
    """Return the local variables of a traceback's frames, from the package's first frame on.

    As rich shows them, but without the source code, which takes long to colour.
    """
    trace = Traceback.extract(type(error), error, error.__traceback__, show_locals=True)
    lines = []
    for stack in reversed(trace.stacks):
        for frame in stack.frames:
            lines.append(f"{frame.filename}:{frame.lineno} in {frame.name}")
            lines += [f"{name} = {value}" for name, value in (frame.locals or {}).items()]
        lines.append(f"{stack.exc_type}: {stack.exc_value}")
    return "\n".join(lines).partition("sunx_adapter/")[2]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
