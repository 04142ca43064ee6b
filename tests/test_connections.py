"""HTTP connections: a call gets the answer to its own request, or an exception."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from ccxt.base.errors import ExchangeClosedByUser, ExchangeError, NetworkError

from sunx_adapter import AsyncSunx, Sandbox, Sunx
from tests.conftest import CLASSES, Caller, config_for, payload
from tests.faulty import faulty_server, http

BODY = payload("sunx-documented")
FORGED = BODY.replace(b"0.004015101942876636", b"999999999.999999999")
TOTAL = 0.004015101942876636


@contextmanager
def scripted_server(*answers: bytes) -> Iterator[tuple[str, list[int]]]:
    """Serve these answers in turn on each connection; yield the address and request counts.

    The first request of a connection is read by :func:`faulty_server`.
    """
    requests: list[int] = []

    def play(connection: socket.socket, _: threading.Event) -> None:
        own = len(requests)
        requests.append(0)
        for number, answer in enumerate(answers):
            if number and not connection.recv(65536):
                return
            requests[own] += 1
            connection.sendall(answer)
        connection.recv(65536)

    with faulty_server(play) as address:
        yield address, requests


class Forger:
    """A server that answers one request, and later sends a forged answer on the same connection."""

    def __init__(self) -> None:
        self._requested, self._sent = threading.Event(), threading.Event()

    def play(self, connection: socket.socket, _: threading.Event) -> None:
        """Serve one connection; a ``play`` for :func:`faulty_server`."""
        connection.sendall(http(BODY))
        assert self._requested.wait(10)
        connection.sendall(http(FORGED))
        self._sent.set()
        connection.recv(65536)

    def send_forged_answer(self) -> bool:
        """Send the forged answer; return whether it was sent."""
        self._requested.set()
        return self._sent.wait(10)


def totals(balances: list[dict[str, Any]]) -> list[float]:
    return [balance["USDT"]["total"] for balance in balances]


def test_a_connection_is_kept(call: Caller) -> None:
    """One connection serves several requests in turn."""
    with scripted_server(*[http(BODY)] * 3) as (address, requests):
        assert totals(call.times(3, "sunx", config_for(address), "fetch_balance")) == [TOTAL] * 3
    assert requests == [3]


@pytest.mark.parametrize("tail", [http(FORGED), b"HTTP/1.1 200 OK\r\n", b"x", b"\r\n\r\nx"])
def test_two_answers_to_one_request(call: Caller, tail: bytes) -> None:
    """Extra bytes after an answer are never taken as the answer to the next request."""
    with scripted_server(http(BODY) + tail, http(FORGED)) as (address, requests):
        assert totals(call.times(2, "sunx", config_for(address), "fetch_balance")) == [TOTAL] * 2
    assert requests == [1, 1]


def test_unrequested_answer(call: Caller) -> None:
    """An unrequested answer on a kept connection is never taken as the answer to a request."""
    forger = Forger()

    def use(exchange: Any) -> Any:
        if not call.asynchronous:
            first = exchange.fetch_balance()
            assert forger.send_forged_answer()
            return [first, exchange.fetch_balance()]

        async def run() -> list[dict[str, Any]]:
            first = await exchange.fetch_balance()
            assert await asyncio.to_thread(forger.send_forged_answer)
            return [first, await exchange.fetch_balance()]

        return run()

    with faulty_server(forger.play) as address:
        assert totals(call.using("sunx", config_for(address), use)) == [TOTAL] * 2


def test_unrequested_answer_while_the_loop_is_busy() -> None:
    """The same holds for an answer that arrives while the event loop is busy."""
    forger = Forger()

    async def run(address: str) -> list[dict[str, Any]]:
        async with AsyncSunx(config_for(address)) as exchange:
            first = await exchange.fetch_balance()
            assert forger.send_forged_answer()  # blocks the event loop, as a computation would
            return [first, await exchange.fetch_balance()]

    with faulty_server(forger.play) as address:
        assert totals(asyncio.run(run(address))) == [TOTAL] * 2


def test_flooded_idle_connection() -> None:
    """A peer that floods an idle connection is cut off, and the next call uses another one."""
    flooded = threading.Event()
    sent: list[int] = []

    def play(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(http(BODY))
        if not flooded.is_set():
            try:
                while sum(sent) < 64 * 2**20:
                    sent.append(connection.send(bytes(65536)))
            finally:
                flooded.set()
        connection.recv(65536)

    async def run(address: str) -> list[dict[str, Any]]:
        async with AsyncSunx(config_for(address)) as exchange:
            first = await exchange.fetch_balance()
            assert await asyncio.to_thread(flooded.wait, 10)
            return [first, await exchange.fetch_balance()]

    with faulty_server(play) as address:
        assert totals(asyncio.run(run(address))) == [TOTAL] * 2
    # The operating system's buffers hold some of it.
    assert sum(sent) < 16 * 2**20


def test_loops_in_turn() -> None:
    """Event loops that run in turn each keep their own connection."""
    with scripted_server(http(BODY), http(BODY)) as (address, requests):
        loops = [asyncio.new_event_loop() for _ in range(2)]
        exchange = AsyncSunx(config_for(address))
        for loop in loops * 2:
            loop.run_until_complete(exchange.fetch_balance())
        for loop in loops:
            loop.run_until_complete(exchange.close())
            loop.close()
    assert requests == [2, 2]


def test_close_during_an_answer_without_length() -> None:
    """An answer without a length is not taken as complete when ``close()`` ends its connection."""
    sent = threading.Event()

    def play(connection: socket.socket, ending: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)
        sent.set()
        ending.wait(10)

    with faulty_server(play) as address:
        exchange = Sunx(config_for(address))
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(exchange.fetch_balance)
            assert sent.wait(10)
            time.sleep(0.05)  # let the call wait for more
            exchange.close()
            with pytest.raises(ExchangeClosedByUser):
                reading.result()


def test_closing_one_exchange_leaves_others_open(call: Caller) -> None:
    """An exchange that shares connections keeps working when the other one is closed."""

    def use(exchange: Any) -> Any:
        other = CLASSES["sunx", call.asynchronous](exchange_config)
        exchange.use_connections_of(other)
        if not call.asynchronous:
            other.fetch_balance()
            other.close()
            return exchange.fetch_balance()

        async def run() -> dict[str, Any]:
            await other.fetch_balance()
            await other.close()
            balance: dict[str, Any] = await exchange.fetch_balance()
            return balance

        return run()

    with scripted_server(http(BODY), http(BODY)) as (address, _):
        exchange_config = config_for(address)
        assert totals([call.using("sunx", exchange_config, use)]) == [TOTAL]


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
def test_interim_answers(call: Caller, head: bytes) -> None:
    """Interim (1xx) answers are skipped."""
    with scripted_server(head + head + http(BODY), head + http(BODY)) as (address, requests):
        assert totals(call.times(2, "sunx", config_for(address), "fetch_balance")) == [TOTAL] * 2
    assert requests == [2]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        http(BODY).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        http(BODY, "Connection: close"),
    ],
    ids=["no length", "HTTP/1.0, no length", "HTTP/1.0", "close"],
)
def test_answers_that_end_the_connection(call: Caller, answer: bytes) -> None:
    """An answer may end with its connection; the next request opens a new one."""

    def play(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(answer)

    with faulty_server(play) as address:
        assert totals(call.times(2, "sunx", config_for(address), "fetch_balance")) == [TOTAL] * 2


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: xxxxxxxxxx\r\n" * 256),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 128),
    "chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;xxxx" * 1024),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: xxxxxxxxxx\r\n" * 256,
    ),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_answers(call: Caller, kind: str) -> None:
    """An endless answer fails in time and is not buffered."""
    start, more = ENDLESS[kind]
    sent: list[int] = []

    def play(connection: socket.socket, ending: threading.Event) -> None:
        connection.sendall(start)
        while not ending.wait(0.001):
            connection.sendall(more)
            sent.append(len(more))

    with faulty_server(play) as address, pytest.raises(NetworkError):
        call("sunx", config_for(address, timeout=2_000), "fetch_balance")
    if call.asynchronous:
        # The operating system's buffers hold some of it.
        assert sum(sent) < 8 * 2**20


SMUGGLED: dict[str, Callable[[Any], Any]] = {
    "path": lambda exchange: exchange.fetch2("x HTTP/1.1\r\nHost: evil\r\n\r\n", "private"),
    "space": lambda exchange: exchange.fetch2("a b", "private"),
    "header": lambda exchange: (
        exchange.headers.update({"X-Mine": "a\r\nX-Other: b"}) or exchange.fetch_balance()
    ),
    "name": lambda exchange: exchange.headers.update({"X:": "a"}) or exchange.fetch_balance(),
}


@pytest.mark.parametrize("kind", SMUGGLED)
def test_no_request_is_smuggled(call: Caller, sandbox: Sandbox, kind: str) -> None:
    """A path or header that would inject another request is refused, and nothing is sent."""
    with pytest.raises(ExchangeError) as caught:
        call.using("sunx", sandbox.config("sunx"), SMUGGLED[kind])
    assert not isinstance(caught.value, NetworkError)
    assert "cannot be" in str(caught.value)
    assert sandbox.request_count == 0


class AdjustableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved forward."""

    ahead = 0.0

    def time(self) -> float:
        """Return the time plus the offset ``ahead``."""
        return super().time() + self.ahead


@pytest.mark.parametrize(("seconds", "connections"), [(10.0, 1), (20.0, 2)])
def test_idle_connections(seconds: float, connections: int) -> None:
    """A connection that was idle for long is not reused: the venue may be closing it."""

    async def run(address: str) -> None:
        async with AsyncSunx(config_for(address)) as exchange:
            await exchange.fetch_balance()
            loop.ahead += seconds
            await exchange.fetch_balance()

    loop = AdjustableLoop()
    with scripted_server(http(BODY), http(BODY)) as (address, requests):
        loop.run_until_complete(run(address))
    loop.close()
    assert len(requests) == connections
