import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import redis
from ccxt.base.errors import (
    ExchangeClosedByUser,
    NetworkError,
    NotSupported,
    RateLimitExceeded,
)

from sunx_adapter import AsyncSunx, Sandbox, Sunx
from sunx_adapter.exchange.budget import SHARED_WINDOWS
from tests.conftest import KEYS, Caller, config_answering, payload
from tests.ports import free_port
from tests.processes import PythonProcess
from tests.test_reliability import arrival_times, most_in_any_window

PASSWORD = "made-up-password"


@pytest.fixture
def redis_uri(tmp_path: Path) -> Iterator[str]:
    """A Redis server on a free port."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    arguments = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--requirepass",
        PASSWORD,
    ]
    with subprocess.Popen([server, *arguments], cwd=tmp_path, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "Ready to accept connections" in line:
                    break
            yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        finally:
            process.terminate()


READER = """
import asyncio, json, sys, time
import httpx
from sunx_adapter import AsyncSunx

class RecordingTransport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request):
        sent.append(time.monotonic())
        return await super().handle_async_request(request)

async def main(config, seconds):
    async with RecordingTransport() as transport:
        config["options"]["transport"] = transport
        async with AsyncSunx(config) as exchange:
            async def read():
                while time.monotonic() < end:
                    await exchange.fetch_balance()
            print("ready", flush=True)
            input()
            end = time.monotonic() + seconds
            await asyncio.gather(*(read() for _ in range(8)))

sent = []
asyncio.run(main(json.loads(sys.argv[1]), float(sys.argv[2])))
print(json.dumps(sent))
"""
"""Reads for some seconds, and prints when it sent each read: a busy venue would notice it late."""


@pytest.mark.long("reads balances in four processes for 9 s")
def test_four_processes_share_one_budget(redis_uri: str) -> None:
    """Four processes share the budget: never a 73rd read in 3 s, and 85 % of it is used."""
    with Sandbox() as sandbox, ExitStack() as stack:
        config = sandbox.config("sunx") | {"timeout": 30_000}
        config["options"] = {"rateLimitStorage": redis_uri}
        command = ["-c", READER, json.dumps(config), "9"]
        readers = [
            stack.enter_context(PythonProcess(*command, stdin=PIPE, stdout=PIPE)) for _ in range(4)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
        # All processes of a machine have the same monotonic clock.
        times = sorted(
            moment for reader in readers for moment in json.loads(reader.communicate()[0])
        )
        assert [reader.returncode for reader in readers] == [0] * 4
        assert len(times) == sandbox.request_count
    assert most_in_any_window(times, 3.0) <= 72
    # After the first window, when all four processes are reading.
    busy = [moment for moment in times if times[0] + 3 <= moment < times[0] + 9]
    assert len(busy) >= 0.85 * 72 * 2


def test_budget_is_in_redis(call: Caller, redis_uri: str) -> None:
    """The reads of one process count for the next one too."""
    config = config_answering(payload("sunx-documented"))
    config["options"]["rateLimitStorage"] = redis_uri

    def read_72(exchange: Any) -> Any:
        """Eight at a time: all must be in one window."""
        if not call.asynchronous:
            with ThreadPoolExecutor(8) as threads:
                return list(threads.map(lambda _: exchange.fetch_balance(), range(72)))

        async def read_9() -> None:
            for _ in range(9):
                await exchange.fetch_balance()

        return asyncio.gather(*(read_9() for _ in range(8)))

    call.using("sunx", config, read_72)
    SHARED_WINDOWS.reset()  # as in another process
    with pytest.raises(RateLimitExceeded):
        call("sunx", config | {"timeout": 1000}, "fetch_balance")


def config_without_redis(fallback: str | None = None) -> dict[str, Any]:
    """Return a configuration whose Redis cannot be reached."""
    port = free_port()
    config = config_answering(payload("sunx-documented")) | {
        "uid": f"without Redis {port}",
        "timeout": 1500,
    }
    uri = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    config["options"] |= {"rateLimitStorage": uri, "rateLimitFallback": fallback}
    return config


def test_unreachable_redis(call: Caller) -> None:
    """If Redis cannot be reached, the error says so without the password; nothing is read."""
    with pytest.raises(NetworkError, match="rateLimitFallback") as caught:
        call("sunx", config_without_redis(), "fetch_balance")
    assert PASSWORD not in str(caught.value)
    assert caught.value.__context__ is None


def test_fallback_is_a_quarter(call: Caller) -> None:
    """With the fallback, a quarter of the budget is available in memory."""
    config = config_without_redis("memory")
    call.times(18, "sunx", config, "fetch_balance")
    with pytest.raises(RateLimitExceeded):
        # A short timeout: on a busy machine the window may pass while a longer one waits.
        call("sunx", config | {"timeout": 300}, "fetch_balance")


def test_redis_refuses_the_password(call: Caller, redis_uri: str) -> None:
    """A Redis that refuses the password is an error like an unreachable one."""
    config = config_answering(payload("sunx-documented"))
    config["options"]["rateLimitStorage"] = redis_uri.replace(PASSWORD, "wrong")
    start = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached"):
        call("sunx", config, "fetch_balance")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "uri", ["nonsense://", "nonsense", "memcached://127.0.0.1:1", f"redis://:{PASSWORD}@host:port"]
)
def test_unknown_storage(uri: str) -> None:
    """An unusable storage is refused when the exchange is made; the error names valid ones."""
    with pytest.raises(NotSupported, match="redis://host:port/db") as caught:
        Sunx({**KEYS, "options": {"rateLimitStorage": uri}})
    assert PASSWORD not in str(caught.value)


@contextmanager
def paused_redis(uri: str) -> Iterator[Callable[[], bool]]:
    """Make Redis answer no script; yields whether one waits."""
    with redis.Redis.from_url(uri) as client:
        client.client_pause(60_000, all=False)
        try:
            yield lambda: any("b" in each["flags"] for each in client.client_list())
        finally:
            client.client_unpause()


@pytest.mark.parametrize("end", ["closed", "little time"])
def test_the_end_of_a_call_is_no_outage(end: str, redis_uri: str) -> None:
    """A call that is closed, or has too little time, does not make Redis count as unreachable."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx") | {"timeout": 2000}
        config["options"] = {"rateLimitStorage": redis_uri, "rateLimitFallback": "memory"}
        with Sunx(config) as exchange:
            exchange.fetch_balance()
        with paused_redis(redis_uri) as is_asked:
            if end == "little time":
                with Sunx(config | {"timeout": 400}) as short, pytest.raises(RateLimitExceeded):
                    short.fetch_balance()  # the read before this one counts in the fallback
            else:
                with ThreadPoolExecutor() as threads, Sunx(config | {"timeout": 60_000}) as long:
                    call = threads.submit(long.fetch_balance)
                    while not is_asked():
                        assert not call.done()
                    long.close()
                    with pytest.raises(ExchangeClosedByUser):
                        call.result()
        with Sunx(config) as exchange:
            for _ in range(25):  # more than a quarter of the limit
                exchange.fetch_balance()


def test_rate_limit_timeout_with_a_slow_redis(redis_uri: str) -> None:
    """``rateLimitTimeout`` ends the wait for the read limit, not the wait for Redis."""
    with Sandbox() as sandbox, ThreadPoolExecutor() as threads:
        config = sandbox.config("sunx")
        config["options"] = {"rateLimitStorage": redis_uri, "rateLimitTimeout": 1}
        with Sunx(config) as exchange:
            with paused_redis(redis_uri) as is_asked:
                call = threads.submit(exchange.fetch_balance)
                while not is_asked():
                    assert not call.done()
            assert call.result()["total"]


@pytest.mark.parametrize("fallback", [None, "memory"])
def test_first_burst(fallback: str | None, redis_uri: str) -> None:
    """72 reads over a Redis need no second window, even if its first answers take long."""
    client = redis.Redis.from_url(redis_uri)

    async def run(config: dict[str, Any]) -> None:
        async with AsyncSunx(config) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(72)))

    with Sandbox() as sandbox:
        config = sandbox.config("sunx") | {"timeout": 3000}
        config["options"] = {"rateLimitStorage": redis_uri, "rateLimitFallback": fallback}
        client.client_pause(300)
        asyncio.run(run(config))
    client.close()


@pytest.mark.long("waits for several windows of the read limit")
def test_flushed_and_stopped_redis(redis_uri: str) -> None:
    """After FLUSHALL, and after Redis stops, the venue still sees no 73rd read in 3 s."""
    client = redis.Redis.from_url(redis_uri)

    async def run(config: dict[str, Any]) -> None:
        async with AsyncSunx(config) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(72)))
            client.flushall()
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(72)))
            client.shutdown(nosave=True)
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(18)))

    with Sandbox() as sandbox:
        config = sandbox.config("sunx") | {"timeout": 20_000, "uid": "flushed"}
        config["options"] = {"rateLimitStorage": redis_uri, "rateLimitFallback": "memory"}
        asyncio.run(run(config))
        times = arrival_times(sandbox)
        assert len(times) == 162
        assert all(request.code == 200 for request in sandbox.requests)
    client.close()
    assert most_in_any_window(times, 3.0) <= 72


def test_redis_clock_goes_back(call: Caller, redis_uri: str) -> None:
    """Reads with a future time in Redis count as reads of now; no call waits for that time."""
    client = redis.Redis.from_url(redis_uri)
    user = f"clock {call}"
    later = time.time() + 3600
    client.zadd(f"sunx-adapter/sunx:{user}", {str(n): later + n for n in range(72)})
    config = config_answering(payload("sunx-documented")) | {"uid": user, "timeout": 10_000}
    config["options"]["rateLimitStorage"] = redis_uri
    start = time.monotonic()
    assert call("sunx", config, "fetch_balance")["total"]
    assert 2.5 < time.monotonic() - start < 6
    client.close()
