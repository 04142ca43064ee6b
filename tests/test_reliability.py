import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ccxt.base.errors import (
    AuthenticationError,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    ExchangeNotAvailable,
    InvalidNonce,
    NetworkError,
    OnMaintenance,
    PermissionDenied,
    RateLimitExceeded,
    RequestTimeout,
)

from sunx_adapter import AsyncSunx, Sandbox, Sunx
from tests.conftest import KEYS, Caller, payload
from tests.faulty import faulty_server, silent
from tests.lateness import Lateness

GOOD = httpx.Response(200, content=payload("sunx-documented"))


def refusal(code: object, **headers: str) -> httpx.Response:
    """Return an error as the venues send it."""
    return httpx.Response(200, json={"code": code, "message": "no"}, headers=headers)


class ScriptedTransport:
    """A transport that gives answers in turn, repeats the last one, and records the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def config(self, **options: Any) -> dict[str, Any]:
        """Return a configuration that uses this transport."""
        transport = httpx.MockTransport(self._answer)
        return {**KEYS, "options": {"transport": transport, **options}}


# -- retries --------------------------------------------------------------------------------

TEMPORARY: list[httpx.Response | Exception] = [
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("no HTTP"),
    httpx.Response(500, text="oops"),
    httpx.Response(503, text="<html>busy</html>"),
    refusal(1004),
    refusal("gateway-internal-error"),
    refusal("timeout"),
]


@pytest.mark.parametrize("failure", TEMPORARY, ids=repr)
def test_temporary_failures_are_retried(
    call: Caller, failure: httpx.Response | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A temporary failure is retried with a new signature and logged once at WARNING."""
    script = ScriptedTransport(failure, GOOD)
    with caplog.at_level(logging.WARNING):
        assert call("sunx", script.config(), "fetch_balance")["total"]
    assert len(script.requests) == 2
    assert all("Signature=" in str(request.url) for request in script.requests)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "trying again" in record.getMessage()


PERMANENT: list[tuple[httpx.Response, type[BaseError]]] = [
    (refusal(1003), AuthenticationError),
    (refusal(12005), BaseError),
    (refusal(1030), BaseError),
    (refusal("maintain"), OnMaintenance),
    (refusal(1077), ExchangeNotAvailable),
    (httpx.Response(200, text="<html>"), BadResponse),
    (httpx.Response(200, json={"code": 200, "data": None}), BadResponse),
    (httpx.Response(403, text="<html>"), ExchangeNotAvailable),
    (httpx.Response(302, headers={"Location": "https://elsewhere.example"}), BadResponse),
]


@pytest.mark.parametrize(("answer", "error"), PERMANENT, ids=range(len(PERMANENT)))
def test_permanent_failures_are_not_retried(
    call: Caller, answer: httpx.Response, error: type[BaseError]
) -> None:
    """A refused key, missing permission, bad request or bad answer is not retried."""
    script = ScriptedTransport(answer)
    with pytest.raises(error):
        call("sunx", script.config(), "fetch_balance")
    assert len(script.requests) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_number_of_tries(call: Caller, retries: int) -> None:
    """The number of retries is a setting; the last error names the number of tries."""
    script = ScriptedTransport(refusal(1004))
    with pytest.raises(ExchangeNotAvailable) as caught:
        call("sunx", script.config(maxRetriesOnFailure=retries), "fetch_balance")
    assert len(script.requests) == retries + 1
    assert (f"({retries + 1} tries)" in str(caught.value)) == (retries > 0)


def test_retries_end_with_the_deadline(call: Caller) -> None:
    """No retry starts after the timeout."""
    script = ScriptedTransport(refusal(1004))
    config = {**script.config(maxRetriesOnFailure=1000), "timeout": 700}
    start = time.monotonic()
    with pytest.raises(ExchangeNotAvailable):
        call("sunx", config, "fetch_balance")
    assert time.monotonic() - start < 3
    assert 1 < len(script.requests) < 10


def test_wait_after_too_many_requests(call: Caller) -> None:
    """After "too many requests", the retry waits as long as the headers say."""
    script = ScriptedTransport(refusal(1032, **{"ratelimit-reset": "300"}), GOOD)
    start = time.monotonic()
    assert call("sunx", script.config(), "fetch_balance")["total"]
    assert time.monotonic() - start >= 0.3


def test_too_many_requests_without_time_to_wait(call: Caller) -> None:
    """If that wait is longer than the timeout, the call fails at once."""
    script = ScriptedTransport(httpx.Response(429, headers={"Retry-After": "60"}))
    start = time.monotonic()
    with pytest.raises(RateLimitExceeded):
        call("sunx", script.config(), "fetch_balance")
    assert time.monotonic() - start < 3
    assert len(script.requests) == 1


# -- clock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_clock_wrong_by_hours(call: Caller, hours: int, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong clock costs one extra request; then the venue's clock is used, with a warning."""
    clock = lambda: time.time() + hours * 3600  # noqa: E731
    with Sandbox(clock=clock) as sandbox, caplog.at_level(logging.WARNING):
        first, second = call.times(2, "sunx", sandbox.config("sunx"), "fetch_balance")
        assert first["total"] == second["total"]
        assert [request.code for request in sandbox.requests] == [12001, 200, 200]
    [record] = caplog.records
    side = "behind" if hours > 0 else "ahead"  # the sandbox's clock is the wrong one
    logged = re.search(rf"using the venue's clock: ours is (\S+) s {side}", record.getMessage())
    assert logged is not None
    assert float(logged[1]) == pytest.approx(abs(hours) * 3600, abs=5)


def test_clock_by_date_header(call: Caller) -> None:
    """If the refusal has no ``ts``, the HTTP date gives the venue's time."""
    date = {"Date": "Tue, 16 Sep 2025 07:16:15 GMT"}
    script = ScriptedTransport(refusal(12001, **date), GOOD)
    assert call("sunx", script.config(), "fetch_balance")["total"]
    assert "Timestamp=2025-09-16T07%3A16%3A1" in str(script.requests[1].url)


def test_time_refused_again(call: Caller) -> None:
    """If the venue refuses the corrected time too, the call fails."""
    jumping = [
        httpx.Response(200, json={"code": 12001, "message": "no", "ts": hour * 3_600_000})
        for hour in range(1, 20)
    ]
    script = ScriptedTransport(*jumping)
    with pytest.raises(InvalidNonce, match="12001"):
        call("sunx", script.config(), "fetch_balance")
    assert len(script.requests) == 2


@pytest.mark.parametrize("answer", [refusal(12001), refusal(12006)])
def test_refusal_without_a_time(call: Caller, answer: httpx.Response) -> None:
    """A refused time without the venue's time is not retried."""
    script = ScriptedTransport(answer)
    with pytest.raises(InvalidNonce):
        call("sunx", script.config(), "fetch_balance")
    assert len(script.requests) == 1


def test_adjust_for_time_difference(call: Caller, exchange_id: str) -> None:
    """With ``adjustForTimeDifference``, the clock is measured before the first balance."""
    with Sandbox(clock=lambda: time.time() - 7200) as sandbox:
        config = sandbox.config(exchange_id) | {"options": {"adjustForTimeDifference": True}}
        assert call(exchange_id, config, "fetch_balance")["total"]
        assert [request.code for request in sandbox.requests][-1] == 200
        assert 12001 not in [request.code for request in sandbox.requests]
        difference = call(exchange_id, sandbox.config(exchange_id), "load_time_difference")
    assert difference == pytest.approx(7_200_000, abs=5000)


# -- the read limit -------------------------------------------------------------------------


def most_in_any_window(times: list[float], seconds: float) -> int:
    """Return the largest number of requests in any window of this length."""
    times = sorted(times)
    return max(
        sum(start <= other < start + seconds for other in times[index:])
        for index, start in enumerate(times)
    )


def arrival_times(sandbox: Sandbox) -> list[float]:
    return [request.monotonic for request in sandbox.requests if request.uid]


@pytest.mark.long("waits for several windows of the read limit")
def test_limit_is_used_and_kept() -> None:
    """Under load, a venue that refuses a 73rd read in 3 s never has to; 90 % of it is used."""
    reads = 288  # four windows

    async def read_all(config: dict[str, Any]) -> None:
        async with AsyncSunx({**config, "timeout": 30_000}) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(reads)))

    with Sandbox() as sandbox, Lateness(sandbox) as lateness:
        asyncio.run(read_all(sandbox.config("sunx")))
    assert {request.code for request in sandbox.requests if request.uid} <= lateness.codes
    arrivals = arrival_times(sandbox)
    assert most_in_any_window(arrivals, 3.0 - lateness.seconds) <= 72
    # The last 72 reads need no window after them.
    took = arrivals[-1] - arrivals[0] - 3 * lateness.seconds
    assert (reads - 72) / took >= 0.9 * 72 / 3


def test_threads_share_the_limit() -> None:
    """Threads that share an exchange share one budget, and all calls are served in time."""
    with Sandbox() as sandbox, Sunx({**sandbox.config("sunx"), "timeout": 20_000}) as exchange:
        threads = [
            threading.Thread(target=lambda: [exchange.fetch_balance() for _ in range(13)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sandbox.requests) == 104
        assert all(request.code == 200 for request in sandbox.requests)


class BusyWhenSigned(AsyncSunx):
    """An exchange whose event loop is busy for 0.5 s as soon as other tasks get their turn."""

    signed: float

    def nonce(self) -> int:
        """Note when it is called: right before the request is signed."""
        self.signed = time.monotonic()
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        return super().nonce()


def test_signed_and_written_at_once(sandbox: Sandbox) -> None:
    """A read is written as soon as it is counted and signed; no other task runs in between."""

    async def run() -> float:
        async with BusyWhenSigned(sandbox.config("sunx")) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(2)))
            await exchange.fetch_balance()
            return exchange.signed

    signed = asyncio.run(run())
    assert sandbox.requests[-1].monotonic - signed < 0.4


def test_first_come_first_served() -> None:
    """Calls that wait for the budget are sent in the order they were made."""
    script = ScriptedTransport(GOOD)

    async def run() -> None:
        async with AsyncSunx({**script.config(), "timeout": 20_000}) as exchange:
            await asyncio.gather(*(exchange.fetch_balance({"n": n}) for n in range(90)))

    asyncio.run(run())
    sent = [int(request.url.params["n"]) for request in script.requests]
    assert sent == list(range(90))


@pytest.mark.parametrize(
    "setting", [{"timeout": 1500}, {"options": {"rateLimitTimeout": 100}}], ids=str
)
def test_no_time_to_wait_for_the_budget(setting: dict[str, Any], call: Caller) -> None:
    """If the budget is not free before the timeout, the call fails at once."""

    def use(exchange: Any) -> Any:
        async def drain_async() -> Any:
            for _ in range(72):
                await exchange.fetch_balance()
            start = time.monotonic()
            with pytest.raises(RateLimitExceeded, match="72 reads in 3 s"):
                await exchange.fetch_balance()
            return time.monotonic() - start

        if call.asynchronous:
            return drain_async()
        for _ in range(72):
            exchange.fetch_balance()
        start = time.monotonic()
        with pytest.raises(RateLimitExceeded, match="72 reads in 3 s"):
            exchange.fetch_balance()
        return time.monotonic() - start

    script = ScriptedTransport(GOOD)
    config = script.config(**setting.get("options", {})) | {"timeout": setting.get("timeout", 9000)}
    assert call.using("sunx", config, use) < 0.5
    assert len(script.requests) == 72


def test_limit_can_be_turned_off(call: Caller) -> None:
    """Without ``enableRateLimit``, no call waits."""
    script = ScriptedTransport(GOOD)
    config = {**script.config(), "enableRateLimit": False, "timeout": 1000}
    call.times(100, "sunx", config, "fetch_balance")
    assert len(script.requests) == 100


def test_remaining_limit_in_headers(call: Caller) -> None:
    """Reads by others, as the venue's headers report them, count too."""
    exhausted = httpx.Response(
        200, content=payload("sunx-documented"), headers={"ratelimit-remaining": "0"}
    )
    script = ScriptedTransport(exhausted)

    config = {**script.config(), "timeout": 1000}
    with pytest.raises(RateLimitExceeded):
        call.times(2, "sunx", config, "fetch_balance")
    assert len(script.requests) == 1


def test_rate_limit_setting(call: Caller) -> None:
    """ccxt's ``rateLimit`` is the least number of ms between two reads."""
    script = ScriptedTransport(GOOD)
    config = {**script.config(), "rateLimit": 300, "timeout": 20_000}
    start = time.monotonic()
    call.times(4, "sunx", config, "fetch_balance")
    assert time.monotonic() - start >= 0.85


class SlowToConnect(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport that takes a second to connect the first 72 times, and notes when it sends."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self._delays = [1.0] * 72

    def _send(self) -> httpx.Response:
        self.sent.append(time.monotonic())
        return httpx.Response(200, content=payload("sunx-documented"))

    def handle_request(self, _request: httpx.Request) -> httpx.Response:
        """Connect, then send."""
        threading.Event().wait(self._delays.pop() if self._delays else 0)
        return self._send()

    async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
        """Connect, then send."""
        await asyncio.sleep(self._delays.pop() if self._delays else 0)
        return self._send()


def test_read_counts_until_it_is_sent(call: Caller) -> None:
    """However long a transport takes to connect, it sends no 73rd read in 3 s."""

    async def in_tasks(exchange: Any) -> None:
        await asyncio.gather(*(exchange.fetch_balance() for _ in range(80)))

    def in_threads(exchange: Any) -> None:
        with ThreadPoolExecutor(80) as threads:
            list(threads.map(lambda _: exchange.fetch_balance(), range(80)))

    transport = SlowToConnect()
    config = {**KEYS, "timeout": 20_000, "options": {"transport": transport}}
    call.using("sunx", config, in_tasks if call.asynchronous else in_threads)
    assert len(transport.sent) == 80
    assert most_in_any_window(transport.sent, 3) == 72


def test_a_host_can_stop_a_request(call: Caller) -> None:
    """What ``before_write()`` raises ends the call; nothing is written, and no read is counted."""

    def use(exchange: Any) -> Any:
        def stop() -> None:
            raise PermissionDenied("not now")

        exchange.before_write = stop
        if not call.asynchronous:
            for _ in range(80):
                with pytest.raises(PermissionDenied):
                    exchange.fetch_balance()
            return None

        async def run() -> None:
            for _ in range(80):
                with pytest.raises(PermissionDenied):
                    await exchange.fetch_balance()

        return run()

    with Sandbox() as sandbox:
        call.using("sunx", {**sandbox.config("sunx"), "timeout": 2500}, use)
    assert not sandbox.requests


# -- close, cancellation and timeouts -------------------------------------------------------


@pytest.fixture
def silent_config() -> Iterator[dict[str, Any]]:
    """A configuration for a venue that never answers."""
    with faulty_server(silent) as address:
        yield {**KEYS, "urls": {"api": {"rest": address}}, "timeout": 20_000}


def test_close_ends_calls_of_threads(silent_config: dict[str, Any]) -> None:
    """``close()`` soon ends a call that waits in another thread."""
    raised: list[BaseException] = []

    def read() -> None:
        try:
            exchange.fetch_balance()
        except BaseError as error:
            raised.append(error)

    exchange = Sunx(silent_config)
    thread = threading.Thread(target=read)
    thread.start()
    while not exchange.last_request_url:
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)  # the call waits for the answer
    start = time.monotonic()
    exchange.close()
    thread.join()
    assert time.monotonic() - start < 5
    [error] = raised
    assert type(error) is ExchangeClosedByUser


@pytest.mark.parametrize("stage", ["answer", "budget", "backoff"])
def test_close_ends_calls_of_tasks(stage: str, silent_config: dict[str, Any]) -> None:
    """``close()`` soon ends the calls of other tasks, wherever they wait."""

    async def run() -> list[object]:
        config: dict[str, Any] = silent_config
        if stage == "backoff":
            config = ScriptedTransport(refusal(1032, **{"ratelimit-reset": "9000"})).config()
        if stage == "budget":
            script = ScriptedTransport(
                httpx.Response(200, headers={"ratelimit-remaining": "0"}, json={})
            )
            config = script.config()
        exchange = AsyncSunx(config)
        tasks = [asyncio.create_task(exchange.fetch_balance()) for _ in range(3)]
        await asyncio.sleep(0.2)  # the calls wait
        await exchange.close()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    start = time.monotonic()
    results = asyncio.run(run())
    assert time.monotonic() - start < 5
    assert ExchangeClosedByUser in [type(result) for result in results]
    assert {type(result) for result in results} <= {ExchangeClosedByUser, BadResponse}


def test_cancelled_task(silent_config: dict[str, Any]) -> None:
    """A cancelled task ends, and the exchange keeps working."""

    async def run() -> None:
        async with AsyncSunx(silent_config) as exchange:
            task = asyncio.create_task(exchange.fetch_balance())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            exchange.timeout = 100
            with pytest.raises(RequestTimeout):
                await exchange.fetch_balance()

    asyncio.run(run())


def test_timeout_of_the_caller(silent_config: dict[str, Any]) -> None:
    """A shorter timeout around a call raises TimeoutError and leaves nothing open."""

    async def run() -> None:
        async with AsyncSunx(silent_config) as exchange:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await exchange.fetch_balance()

    asyncio.run(run())


def test_network_error_says_what_to_check(call: Caller) -> None:
    """After all tries, the error still says what failed and what to check."""
    script = ScriptedTransport(httpx.ConnectError("All connection attempts failed"))
    with pytest.raises(NetworkError, match=r"All connection attempts failed.*check the network"):
        call("sunx", script.config(), "fetch_balance")


def test_info_is_the_answer(sandbox: Sandbox) -> None:
    """``info`` is the venue's answer unchanged."""
    with Sunx(sandbox.config("sunx")) as exchange:
        balance = exchange.fetch_balance()
        assert balance["info"] == json.loads(exchange.last_http_response)
