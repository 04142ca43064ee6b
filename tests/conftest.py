"""What the tests share: a sandbox, and one way to call the sync and the async classes alike."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sandbox, Sunx
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
    """Start long tests first and say what they do."""
    progress.register(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process per core and one more, because long tests mostly wait."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return (len(usable(0)) if usable else os.cpu_count() or 1) + 1


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes an exchange, calls one of its methods and closes it; the same for both kinds."""

    asynchronous: bool

    def __call__(
        self, exchange_id: str, config: dict[str, Any], method: str, *arguments: Any
    ) -> Any:
        """What the method gives; whatever it raises comes through."""
        return self.using(
            exchange_id, config, lambda exchange: getattr(exchange, method)(*arguments)
        )

    def times(self, count: int, exchange_id: str, config: dict[str, Any], method: str) -> list[Any]:
        """What so many calls of one exchange give, one after the other."""

        def use(exchange: Any) -> Any:
            if not self.asynchronous:
                return [getattr(exchange, method)() for _ in range(count)]

            async def run() -> list[Any]:
                return [await getattr(exchange, method)() for _ in range(count)]

            return run()

        results: list[Any] = self.using(exchange_id, config, use)
        return results

    def using(self, exchange_id: str, config: dict[str, Any], use: Callable[[Any], Any]) -> Any:
        """What ``use`` makes of the exchange; an awaitable is awaited."""
        make = CLASSES[exchange_id, self.asynchronous]
        if not self.asynchronous:
            with make(config) as exchange:
                return use(exchange)

        async def run() -> Any:
            async with make(config) as exchange:
                result = use(exchange)
                return await result if inspect.isawaitable(result) else result

        return asyncio.run(run())


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Calls the synchronous, then the asynchronous class."""
    return Caller(request.param)


@pytest.fixture(params=["sunx", "htxfutures"])
def exchange_id(request: pytest.FixtureRequest) -> str:
    """Each exchange in turn."""
    return str(request.param)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A venue of its own for each test, so that read limits do not add up."""
    with Sandbox() as running:
        yield running


def payload(name: str) -> bytes:
    """A real answer, as it came."""
    return (PAYLOADS / f"{name}.json").read_bytes()


def new_user() -> str:
    """A user id that no other test has: the read limit counts by user, over all exchanges."""
    return f"made-up-user-{uuid4()}"


def answered(body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A configuration whose transport gives this answer to every request."""

    def answer(request: httpx.Request) -> httpx.Response:  # noqa: ARG001
        return httpx.Response(200, content=body, headers=headers)

    return {**KEYS, "uid": new_user(), "options": {"transport": httpx.MockTransport(answer)}}


def pointed_at(address: str, **more: Any) -> dict[str, Any]:
    """A configuration for a server at this address, without read limit and retries.

    Args:
        address: where the REST API is.
        more: further configuration; ``options`` are added to those that there are.
    """
    return {
        **KEYS,
        "enableRateLimit": False,
        "urls": {"api": {"rest": address}},
        **more,
        "options": {"maxRetriesOnFailure": 0, **more.get("options", {})},
    }


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody knows, and its key, in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
