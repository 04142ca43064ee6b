"""Attacks from outside that once broke a promise: over HTTP, at the socket, by fork or signal."""

import asyncio
import gc
import gzip
import itertools
import json
import multiprocessing
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from ccxt.base.errors import (
    BaseError,
    ExchangeClosedByUser,
    InvalidNonce,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
)

from sunx_adapter import AsyncSunx, Sunx
from tests.conftest import KEYS, Caller, config_answering, payload
from tests.faulty import http, tcp_server
from tests.test_reliability import most_in_any_window

BODY = payload("sunx-documented")
EMPTY = b'{"code":200,"data":{"details":[]}}'
TOTAL = 0.004015101942876636


def balance_body(equity: str) -> bytes:
    """Return an answer with this equity."""
    return BODY.replace(b"0.004015101942876636", equity.encode())


AnswerFunction = Callable[[int, bytes], bytes]


class RecordingVenue:
    """A venue at socket level that records when each request arrived."""

    def __init__(self, answer: AnswerFunction, accept_after: float = 0.0) -> None:
        self._answer = answer
        self._accept_after = accept_after
        self.moments: list[float] = []
        self._numbers = itertools.count()

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        with connection:
            head = b""
            try:
                while True:
                    while b"\r\n\r\n" not in head:
                        if not (data := connection.recv(65536)):
                            return
                        head += data
                    request, _, head = head.partition(b"\r\n\r\n")
                    self.moments.append(time.monotonic())
                    connection.sendall(self._answer(next(self._numbers), request))
            except OSError:
                return


@contextmanager
def venue(answer: AnswerFunction) -> Iterator[tuple[dict[str, Any], RecordingVenue]]:
    """Run that venue; yield it with a configuration."""
    recorder = RecordingVenue(answer)
    with tcp_server(recorder.serve) as port:
        yield (
            {
                **KEYS,
                "urls": {"api": {"rest": f"http://127.0.0.1:{port}"}},
                "options": {"maxRetriesOnFailure": 0},
            },
            recorder,
        )


def good(_number: int, _request: bytes) -> bytes:
    return http(BODY)


def unlimited(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**config, "enableRateLimit": False, **more}


# -- wrong or empty balances ----------------------------------------------------------------


def test_extra_answers_with_many_threads() -> None:
    """An extra answer never becomes a balance, however many threads share an exchange."""

    def answer(number: int, _: bytes) -> bytes:
        return http(BODY) + (http(EMPTY) if number % 10 == 0 else b"")

    def read(exchange: Sunx) -> list[Any]:
        return [exchange.fetch_balance()["total"] for _ in range(250)]

    with venue(answer) as (config, _), Sunx(unlimited(config)) as exchange:
        with ThreadPoolExecutor(4) as threads:
            results = [threads.submit(read, exchange) for _ in range(4)]
        totals = [total for result in results for total in result.result()]
    assert totals == [{"USDT": TOTAL}] * 1000


def test_shared_connections_with_many_threads() -> None:
    """Accounts that share connections each get their own balance."""

    def answer(number: int, request: bytes) -> bytes:
        key = parse_qs(request.split(b"?")[1].split(b" ")[0].decode())["AccessKeyId"][0]
        own = http(balance_body(key.rpartition("-")[2]))
        return own + (own if number % 10 == 0 else b"")

    def read(exchange: Sunx, equity: float) -> bool:
        return all(exchange.fetch_balance()["USDT"]["total"] == equity for _ in range(200))

    with venue(answer) as (config, _):
        made = [Sunx(unlimited(config, apiKey=f"made-up-key-{n}")) for n in range(1, 5)]
        for each in made[1:]:
            each.use_connections_of(made[0])
        with ThreadPoolExecutor(4) as threads:
            right = list(threads.map(read, made, map(float, range(1, 5))))
        for each in made:
            each.close()
    assert right == [True] * 4


def test_late_duplicate_for_another_key(call: Caller) -> None:
    """A late answer for one key is never taken as the answer for another key."""

    def use(exchange: Any) -> Any:
        if call.asynchronous:

            async def run() -> list[Any]:
                results = []
                for key in ("made-up-a", "made-up-b"):
                    exchange.apiKey = key
                    results.append((await exchange.fetch_balance())["USDT"]["total"])
                return results

            return run()
        results = []
        for key in ("made-up-a", "made-up-b"):
            exchange.apiKey = key
            results.append(exchange.fetch_balance()["USDT"]["total"])
        return results

    def serve(connection: socket.socket) -> None:
        sent_here: list[bytes] = []
        with connection:
            while request := connection.recv(65536):
                key = parse_qs(request.split(b"?")[1].split(b" ")[0].decode())["AccessKeyId"][0]
                own = http(balance_body("1" if key.endswith("a") else "2"))
                connection.sendall(b"".join(sent_here) or own)
                sent_here[:] = [own]

    with tcp_server(serve) as port:
        config = unlimited({**KEYS, "urls": {"api": {"rest": f"http://127.0.0.1:{port}"}}})
        assert call.using("sunx", config, use) == [1.0, 2.0]


@pytest.mark.parametrize("status", ["099 Odd", "99 Odd", "600 Odd", "999 Odd"])
def test_invalid_status(call: Caller, status: str) -> None:
    """A status below 100 or above 599 raises NetworkError."""
    with (
        venue(lambda *_: http(EMPTY, status=status) + http(BODY)) as (config, _),
        pytest.raises(NetworkError, match="check the network"),
    ):
        call("sunx", unlimited(config), "fetch_balance")


FAILURES = [
    {"success": False},
    {"success": "false"},
    {"success": 0},
    {"ok": False},
    {"error": "no such account"},
    {"errors": ["no"]},
    {"status": "error"},
    {"err-code": "x"},
    {"err_code": 403},
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_failure_despite_code_200(call: Caller, failure: dict[str, Any]) -> None:
    """An answer with any sign of failure raises an exception, even with code 200."""
    body = json.dumps({"code": 200, **failure, "data": {"details": []}}).encode()
    with pytest.raises(BaseError):
        call("sunx", config_answering(body), "fetch_balance")


@pytest.mark.parametrize("more", [{"success": True}, {"ok": 1}, {"error": None}, {"errors": []}])
def test_signs_of_success(call: Caller, more: dict[str, Any]) -> None:
    """A field that only confirms success changes nothing."""
    body = json.dumps({"code": 200, **more, "data": {"details": []}}).encode()
    assert call("sunx", config_answering(body), "fetch_balance")["total"] == {}


# -- timeouts, interruptions and forks ------------------------------------------------------


@pytest.mark.parametrize("ts", ["1e1000000", "1e20", "-1", "1e999999999", '"9' + "9" * 5000 + '"'])
def test_invalid_venue_time(call: Caller, ts: str) -> None:
    """An invalid venue time is refused quickly and does not change the clock offset."""
    answers = [f'{{"code":12001,"message":"no","ts":{ts}}}'.encode(), BODY]

    def use(exchange: Any) -> Any:
        if call.asynchronous:

            async def run() -> Any:
                with pytest.raises(InvalidNonce):
                    await exchange.fetch_balance()
                return await exchange.fetch_balance()

            return run()
        with pytest.raises(InvalidNonce):
            exchange.fetch_balance()
        return exchange.fetch_balance()

    start = time.monotonic()
    with venue(lambda number, _: http(answers[number])) as (config, _):
        assert call.using("sunx", unlimited(config), use)["USDT"]["total"] == TOTAL
    assert time.monotonic() - start < 2


@contextmanager
def fake_redis(play: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Run a server that plays a Redis; yield its URI."""
    ending = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                play(connection, ending)
            except OSError:
                return

    with tcp_server(serve) as port:
        try:
            yield f"redis://:made-up-password@127.0.0.1:{port}/0"
        finally:
            ending.set()


def _stall(_: socket.socket, ending: threading.Event) -> None:
    ending.wait(30)


def _drip(connection: socket.socket, ending: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"$1000000\r\n")
    while not ending.wait(0.05):
        connection.sendall(b"x")


def _answer_slowly(connection: socket.socket, ending: threading.Event) -> None:
    while connection.recv(65536) and not ending.wait(0.7):
        connection.sendall(b"+OK\r\n")


@pytest.mark.parametrize("play", [_stall, _drip, _answer_slowly])
@pytest.mark.parametrize("fallback", [None, "memory"])
def test_slow_redis(call: Caller, play: Any, fallback: str | None) -> None:
    """If Redis stalls or is slow, the call still ends in time, with the fallback if set."""
    pytest.importorskip("redis")
    with fake_redis(play) as uri, venue(good) as (config, _):
        config |= {"timeout": 600}
        config["options"] |= {"rateLimitStorage": uri, "rateLimitFallback": fallback}
        start = time.monotonic()
        if fallback:
            assert call("sunx", config, "fetch_balance")["USDT"]["total"] == TOTAL
        else:
            with pytest.raises(NetworkError) as caught:
                call("sunx", config, "fetch_balance")
            assert "made-up-password" not in str(caught.value)
        assert time.monotonic() - start < 0.6 + 0.35


def test_ctrl_c_while_waiting_for_the_budget() -> None:
    """Ctrl-C while a call waits for the read budget does not disturb later calls."""
    # SIGINT may be ignored in the process that starts the tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with venue(good) as (config, recorder), Sunx({**config, "timeout": 20_000}) as exchange:
        for _ in range(72):
            exchange.fetch_balance()
        for _ in range(3):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                exchange.fetch_balance()
            timer.join()
        assert exchange.fetch_balance()["USDT"]["total"] == TOTAL
        with Sunx({**config, "timeout": 20_000}) as another:
            assert another.fetch_balance()["USDT"]["total"] == TOTAL
    signal.signal(signal.SIGINT, before)
    assert most_in_any_window(recorder.moments, 3.0) <= 72


def _report(exchange: Any, sending: Any) -> None:
    try:
        sending.send(exchange.fetch_balance()["USDT"]["total"])
    except BaseError as error:
        sending.send(repr(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.1])
@pytest.mark.parametrize("waiting", [False, True], ids=["first call", "waiting for rateLimit"])
def test_fork_during_a_call_in_another_thread(moment: float, waiting: bool) -> None:
    """The child of a fork gets its balance, at any moment of another thread's call."""
    context = multiprocessing.get_context("fork")
    with venue(good) as (config, _):
        if waiting:
            config["rateLimit"] = 400
        exchange = Sunx({**config, "timeout": 10_000})
        if waiting:
            exchange.fetch_balance()
        thread = threading.Thread(target=exchange.fetch_balance)
        thread.start()
        time.sleep(moment)
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=_report, args=(exchange, sending))
        child.start()
        assert receiving.poll(8), "the child hangs"
        assert receiving.recv() == TOTAL
        child.join()
        thread.join()
        exchange.close()


def test_compressed_answer_that_unpacks_too_large(call: Caller) -> None:
    """A small answer that unpacks to a large one is refused in time."""
    row = b'{"currency":"A","equity":"1","available":"1","initial_margin":"0"},'
    body = b'{"code":200,"data":{"details":[' + row * (8 * 2**20 // len(row)) + row[:-1] + b"]}}"
    zipped = gzip.compress(body)
    assert len(zipped) < 100_000
    with venue(lambda *_: http(zipped, "Content-Encoding: gzip")) as (config, _):
        start = time.monotonic()
        with pytest.raises(BaseError, match="larger than 1048576"):
            call("sunx", unlimited(config, timeout=500), "fetch_balance")
        assert time.monotonic() - start < 0.75


@pytest.mark.parametrize("tail", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_line_feeds_after_an_answer(call: Caller, tail: bytes) -> None:
    """Line feeds after an answer make no later call fail."""
    with venue(lambda *_: http(BODY) + tail) as (config, _):
        balances = call.times(3, "sunx", unlimited(config), "fetch_balance")
    assert [balance["USDT"]["total"] for balance in balances] == [TOTAL] * 3


# -- no 73rd read in 3 s, counted at the server ---------------------------------------------


def test_budget_with_simultaneous_threads() -> None:
    """120 threads that start at the same moment share one budget."""
    barrier = threading.Barrier(120)
    with venue(good) as (config, recorder):

        def read() -> None:
            exchange = Sunx({**config, "timeout": 1500})
            barrier.wait()
            try:
                exchange.fetch_balance()
            except RateLimitExceeded:
                pass
            finally:
                exchange.close()

        threads = [threading.Thread(target=read) for _ in range(120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 60 <= most_in_any_window(recorder.moments, 3.0) <= 72


@pytest.mark.long("waits for several windows of the read limit")
def test_budget_with_slow_connections(certificate: Path) -> None:
    """A read counts when its request is written, not when its connection is opened."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    moments: list[float] = []
    numbers = itertools.count()

    def serve(connection: socket.socket) -> None:
        try:
            if next(numbers) % 2 == 0:
                threading.Event().wait(1.0)  # before the handshake
            with context.wrap_socket(connection, server_side=True) as encrypted:
                while encrypted.recv(65536):
                    moments.append(time.monotonic())
                    encrypted.sendall(http(BODY))
        except OSError:
            connection.close()

    async def run(port: int) -> None:
        config = {
            **KEYS,
            "timeout": 12_000,
            "cafile": str(certificate),
            "urls": {"api": {"rest": f"https://127.0.0.1:{port}"}},
        }
        async with AsyncSunx(config) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(110)))

    with tcp_server(serve) as port:
        asyncio.run(run(port))
    assert len(moments) == 110
    assert most_in_any_window(moments, 3.0) <= 72


def test_sign_and_fetch_use_the_budget(call: Caller) -> None:
    """A request made with ``sign()`` and ``fetch()`` counts like any other read."""
    with venue(good) as (config, recorder):
        signed = Sunx(config).sign("sapi/v1/account/balance", "private", "GET", {})

        def use(exchange: Any) -> Any:
            if call.asynchronous:

                async def run() -> Any:
                    return await asyncio.gather(
                        *(exchange.fetch(signed["url"]) for _ in range(120)),
                        return_exceptions=True,
                    )

                return run()
            results: list[Any] = []
            for _ in range(120):
                try:
                    results.append(exchange.fetch(signed["url"]))
                except RateLimitExceeded as error:
                    results.append(error)
            return results

        results = call.using("sunx", {**config, "timeout": 300}, use)
    assert most_in_any_window(recorder.moments, 3.0) <= 72
    assert sum(isinstance(result, RateLimitExceeded) for result in results) >= 40


def test_budget_after_close_and_reopen() -> None:
    """After ``close()`` and reopening, earlier reads still count."""
    with venue(good) as (config, recorder):
        exchange = Sunx({**config, "timeout": 10_000})
        for _ in range(72):
            exchange.fetch_balance()
        ended: list[Any] = []

        def wait_for_budget() -> None:
            try:
                ended.append(exchange.fetch_balance())
            except ExchangeClosedByUser as error:
                ended.append(error)

        threads = [threading.Thread(target=wait_for_budget) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        exchange.close()
        for thread in threads:
            thread.join()
        with exchange:
            for _ in range(8):
                exchange.fetch_balance()
    assert {type(each) for each in ended} <= {ExchangeClosedByUser, dict}
    assert most_in_any_window(recorder.moments, 3.0) <= 72


def test_unanswered_call_ends_in_time(call: Caller) -> None:
    """A call without an answer ends within its timeout plus a small margin."""

    def serve(connection: socket.socket) -> None:
        with connection:
            threading.Event().wait(1.0)

    with tcp_server(serve) as port:
        config = unlimited({**KEYS, "urls": {"api": {"rest": f"http://127.0.0.1:{port}"}}})
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            call("sunx", {**config, "timeout": 300}, "fetch_balance")
        assert time.monotonic() - start < 0.3 + 0.35


def test_close_ends_calls_wherever_they_wait() -> None:
    """``close()`` ends a call that waits for Redis, or on connections with earlier settings."""
    pytest.importorskip("redis")
    release = threading.Event()

    def answer(*_: Any) -> bytes:
        release.wait(5)
        return http(BODY)

    with fake_redis(_stall) as uri, venue(answer) as (config, recorder):
        slow = Sunx(unlimited(config, timeout=5000))
        stalled = Sunx({**config, "timeout": 5000, "options": {"rateLimitStorage": uri}})
        with ThreadPoolExecutor() as threads:
            calls = [threads.submit(each.fetch_balance) for each in (slow, stalled)]
            while not recorder.moments:
                time.sleep(0.01)
            slow.trust_env = True
            calls.append(threads.submit(slow.fetch_balance))
            while len(recorder.moments) < 2:
                time.sleep(0.01)
            start = time.monotonic()
            slow.close()
            stalled.close()
            for each in calls:
                with pytest.raises(ExchangeClosedByUser):
                    each.result()
            assert time.monotonic() - start < 1
        release.set()


def test_keys_that_change_while_calls_wait() -> None:
    """A waiting call keeps its keys for signing, budget and connections."""
    seen: list[tuple[int, str]] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(65536):
                query = request.split(b"?")[1].split(b" ")[0].decode()
                seen.append((id(connection), parse_qs(query)["AccessKeyId"][0]))
                connection.sendall(http(BODY))

    async def run(port: int) -> None:
        keys = ["made-up-key-a", "made-up-key-b"]
        config = {
            **KEYS,
            "apiKey": keys[0],
            "timeout": 10_000,
            "urls": {"api": {"rest": f"http://127.0.0.1:{port}"}},
        }
        async with AsyncSunx(config) as exchange:
            first = [asyncio.create_task(exchange.fetch_balance()) for _ in range(80)]
            await asyncio.sleep(0.5)  # eight calls wait for the budget
            exchange.apiKey = keys[1]
            second = [asyncio.create_task(exchange.fetch_balance()) for _ in range(10)]
            await asyncio.gather(*first, *second)
        assert [key for _, key in seen].count(keys[0]) == 80
        assert [key for _, key in seen].count(keys[1]) == 10

    with tcp_server(serve) as port:
        asyncio.run(run(port))
    by_connection: dict[int, set[str]] = {}
    for connection, key in seen:
        by_connection.setdefault(connection, set()).add(key)
    assert {len(keys) for keys in by_connection.values()} == {1}


def test_one_exchange_in_several_event_loops() -> None:
    """Calls of one exchange in several event loops each end in time."""

    def serve(connection: socket.socket) -> None:
        with connection:
            threading.Event().wait(1.5)

    def read(exchange: AsyncSunx) -> float:
        async def run() -> float:
            start = time.monotonic()
            with pytest.raises(RequestTimeout):
                await exchange.fetch_balance()
            return time.monotonic() - start

        return asyncio.run(run())

    with tcp_server(serve) as port:
        config = unlimited({**KEYS, "urls": {"api": {"rest": f"http://127.0.0.1:{port}"}}})
        exchange = AsyncSunx({**config, "timeout": 500})
        with ThreadPoolExecutor() as threads:
            took = list(threads.map(read, [exchange] * 3))
    assert max(took) < 0.5 + 0.35


@pytest.mark.long("waits for several windows of the read limit")
def test_budget_with_different_rate_limits() -> None:
    """Exchanges with and without their own ``rateLimit`` share the user's budget."""

    async def run(config: dict[str, Any]) -> None:
        slow = AsyncSunx({**config, "rateLimit": 60, "timeout": 12_000})
        fast = AsyncSunx({**config, "timeout": 12_000})
        reads = [slow.fetch_balance() for _ in range(30)] + [
            fast.fetch_balance() for _ in range(90)
        ]
        await asyncio.gather(*reads)
        await slow.close()
        await fast.close()

    with venue(good) as (config, recorder):
        asyncio.run(run(config))
    assert len(recorder.moments) == 120
    assert most_in_any_window(recorder.moments, 3.0) <= 72


# Python warns about a coroutine that is interrupted before its first step; it is harmless.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_repeated_ctrl_c() -> None:
    """After an interrupt at any moment, the next call is right and no descriptor is left open."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with venue(good) as (config, _), Sunx(unlimited(config)) as exchange:
            exchange.fetch_balance()
            files = len(os.listdir("/proc/self/fd"))
            for number in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00005 + number % 100 * 0.00001)
                    while True:
                        exchange.fetch_balance()
                except KeyboardInterrupt:
                    pass
                assert exchange.fetch_balance()["USDT"]["total"] == TOTAL
            gc.collect()
            # The server's ends of closed connections stay open in this process for a moment.
            until = time.monotonic() + 5
            while len(os.listdir("/proc/self/fd")) > files + 4 and time.monotonic() < until:
                time.sleep(0.05)
            assert len(os.listdir("/proc/self/fd")) <= files + 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
