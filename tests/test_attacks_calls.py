"""Attacks on single calls from outside: TLS records, deadlines, the read limit, signals."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from ccxt.base.errors import BaseError, NetworkError, RateLimitExceeded, RequestTimeout

from sunx_adapter import AsyncSunx, Sunx
from sunx_adapter.exchange.budget import MemoryWindows
from tests.certificates import make_certificate
from tests.conftest import KEYS, Caller, frames_of, payload
from tests.faulty import http, tcp_server
from tests.processes import run_python
from tests.test_attacks import TOTAL, good, unlimited, venue
from tests.test_attacks_secrets import API_KEY, SECRET, signature_of
from tests.test_reliability import GOOD, ScriptedTransport, most_in_any_window

BODY = payload("sunx-documented")
EMPTY = b'{"code":200,"data":{"details":[]}}'


def longest_part(secret: str, text: str) -> int:
    """Return the length of the longest part of the secret that is in the text."""
    ends = range(1, len(secret) + 1)
    return max(end - start for end in ends for start in range(end) if secret[start:end] in text)


# -- secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "502 Bad Gateway"])
def test_a_text_is_cut_after_it_was_cleaned(call: Caller, status: str) -> None:
    """No part of a signature is left if a text full of signatures is cut."""
    sent: list[str] = []

    def answer(_: int, request: bytes) -> bytes:
        sent.append(signature_of(request))
        count, rest = divmod(4096 - 42, len(sent[-1]) + 1)
        text = "p" * rest + (sent[-1] + " ") * (count + 2)
        is_page = status.startswith("502")
        body = text if is_page else json.dumps({"code": 9999, "message": text})
        return http(body.encode(), status=status)

    with venue(answer) as (config, _), pytest.raises(BaseError) as caught:
        call("sunx", unlimited(config, apiKey=API_KEY, secret=SECRET), "fetch_balance")
    assert longest_part(sent[-1], str(caught.value)) < 12


class NoTextError(Exception):
    """An exception whose ``str()`` fails."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_an_exception_without_text_is_ccxts() -> None:
    """If ``str()`` of a transport's exception fails, the call still raises one of ccxt's."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise NoTextError

    config = {**KEYS, "enableRateLimit": False}
    config["options"] = {"transport": httpx.MockTransport(fail)}
    with Sunx(config) as exchange, pytest.raises(BaseError):
        exchange.fetch_balance()


@pytest.mark.parametrize("occurrence", [1, 2, 3])
def test_an_interrupted_redaction_shows_no_secret(occurrence: int) -> None:
    """Ctrl-C while an error is redacted shows no signature and no secret in its traceback."""
    sent: list[str] = []
    seen: list[str] = []

    def answer(_: int, request: bytes) -> bytes:
        sent.append(quote(signature_of(request), safe=""))
        return http(b'{"code":9999,"message":"no"}')

    def interrupt(frame: Any, *_: object) -> None:
        if frame.f_code.co_name == "cleaned" and "sunx_adapter" in frame.f_code.co_filename:
            seen.append("cleaned")
            if len(seen) == occurrence:
                raise KeyboardInterrupt

    with venue(answer) as (config, _), Sunx(unlimited(config, secret=SECRET)) as exchange:
        sys.settrace(interrupt)
        try:
            exchange.fetch_balance()
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, or the redacted error
            failure = error
        finally:
            sys.settrace(None)
    frames = frames_of(failure)
    assert sent[0] not in frames
    assert SECRET not in frames


# -- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float, str])
def test_mapping_ends_in_time(call: Caller, number: type) -> None:
    """A large answer that takes long to map ends the call at its timeout."""
    rows = ",".join(
        f'{{"currency":"{row:X}Z","equity":1e-99,"available":-1e-99,"initial_margin":1e99}}'
        for row in range(13_000)
    )
    body = f'{{"code":200,"data":{{"details":[{rows}]}}}}'.encode()

    def timed(exchange: Any) -> Any:
        started = time.monotonic()
        if isinstance(exchange, Sunx):
            with pytest.raises(BaseError):
                exchange.fetch_balance()
            return time.monotonic() - started

        async def run() -> float:
            with pytest.raises(BaseError):
                await exchange.fetch_balance()
            return time.monotonic() - started

        return run()

    with venue(lambda *_: http(body)) as (config, _):
        settings = unlimited(config, timeout=500, number=number)
        assert call.using("sunx", settings, timed) < 0.75


def test_an_expired_deadline_cancels_nothing_later() -> None:
    """A call that fails at once because its deadline has expired cancels no later wait."""

    async def run(config: dict[str, Any]) -> None:
        async with AsyncSunx({**config, "timeout": 5000}) as exchange:
            await asyncio.gather(*(exchange.fetch_balance() for _ in range(72)))
            exchange.timeout = 1e-6
            with pytest.raises(BaseError):
                await exchange.fetch_balance()
            await asyncio.sleep(0)

    with venue(good) as (config, _):
        asyncio.run(run(config))


def test_a_timeout_may_be_text() -> None:
    """A timeout that is set as text ends the call with RequestTimeout too."""

    def silent(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                pass

    with tcp_server(silent) as port:
        address = f"http://127.0.0.1:{port}"
        with Sunx({**KEYS, "urls": {"api": {"rest": address}}}) as exchange:
            exchange.timeout = "200"
            with pytest.raises(RequestTimeout):
                exchange.fetch_balance()


# -- TLS ------------------------------------------------------------------------------------


class TlsPeer:
    """A server's end of TLS that decides which bytes are sent when."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self.connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)

    def encrypted(self, data: bytes = b"") -> bytes:
        """Return what is to be sent, with this data in its last record."""
        if data:
            self.tls.write(data)
        return self._out.read()

    def do(self, step: Callable[[], Any], *, flush: bool = True) -> Any:
        """Return the step's result; receive as long as it needs more."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.connection.sendall(self.encrypted())
                if not (data := self.connection.recv(65536)):
                    raise ConnectionError from None
                self._in.write(data)
            else:
                if flush:
                    self.connection.sendall(self.encrypted())
                return result

    def request(self) -> None:
        """Receive a request."""
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := self.do(lambda: self.tls.read(65536))):
                raise ConnectionError
            head += data


Play = Callable[[TlsPeer, int], None]


@contextmanager
def tls_venue(directory: Path, play: Play) -> Iterator[dict[str, Any]]:
    """Run a venue over TLS 1.2, yield a configuration; ``play`` serves a connection by number."""
    file = make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    made: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        made.append(connection)
        with connection, contextlib.suppress(OSError):  # the client may disconnect
            play(TlsPeer(connection, context), len(made))

    with tcp_server(serve) as port:
        address = {"rest": f"https://127.0.0.1:{port}"}
        yield {**KEYS, "cafile": str(file), "urls": {"api": address}}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_a_record_before_the_request_is_no_answer(
    call: Caller, tmp_path: Path, cut: int
) -> None:
    """An unrequested answer whose TLS record began before the request is never used."""
    half_sent = threading.Event()

    def play(peer: TlsPeer, number: int) -> None:
        peer.do(peer.tls.do_handshake)
        peer.request()
        peer.connection.sendall(peer.encrypted(http(BODY)))
        if number == 1:
            record = peer.encrypted(http(EMPTY))
            time.sleep(0.05)  # until the answer was read
            peer.connection.sendall(record[:cut])
            time.sleep(0.05)  # until these bytes have arrived
            half_sent.set()
            peer.request()
            peer.connection.sendall(record[cut:])
        while True:
            peer.request()
            peer.connection.sendall(peer.encrypted(http(BODY)))

    def read_twice(exchange: Any) -> Any:
        if isinstance(exchange, Sunx):
            first = exchange.fetch_balance()
            half_sent.wait()
            return [first["total"], exchange.fetch_balance()["total"]]

        async def run() -> list[Any]:
            first = await exchange.fetch_balance()
            await asyncio.to_thread(half_sent.wait)
            return [first["total"], (await exchange.fetch_balance())["total"]]

        return run()

    with tls_venue(tmp_path, play) as config:
        assert call.using("sunx", unlimited(config), read_twice) == [{"USDT": TOTAL}] * 2


def test_connections_that_are_closed_at_once_are_tried_a_few_times(
    call: Caller, tmp_path: Path
) -> None:
    """If a peer closes each connection after the handshake, the usual retries are made."""
    numbers: list[int] = []

    def play(peer: TlsPeer, number: int) -> None:
        numbers.append(number)
        peer.do(peer.tls.do_handshake, flush=False)
        with suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.connection.sendall(peer.encrypted())

    with tls_venue(tmp_path, play) as config, pytest.raises(NetworkError) as caught:
        call("sunx", {**config, "timeout": 2000}, "fetch_balance")
    assert not isinstance(caught.value, RequestTimeout)
    assert len(numbers) == 3


# -- the read limit -------------------------------------------------------------------------


def test_a_slow_log_does_not_hold_up_counted_reads() -> None:
    """A read is counted after it was logged, even if the log handler is slow."""
    go_on = threading.Event()

    class SlowHandler(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:  # without the handler's lock
            return ": GET " not in record.getMessage() or go_on.wait()

    logger, handler = logging.getLogger("sunx_adapter.made-up"), SlowHandler()
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    with venue(good) as (config, recorder):
        with Sunx({**config, "timeout": 6000, "logger": logger}) as exchange:

            def read() -> None:
                with suppress(BaseError):
                    exchange.fetch_balance()

            with ThreadPoolExecutor(144) as threads:
                for _ in range(144):
                    threads.submit(read)
                time.sleep(3.5)
                go_on.set()
        assert most_in_any_window(recorder.moments, 3) <= 72


@pytest.mark.parametrize("way", ["another key", "another exchange"])
def test_signed_requests_count_for_their_key(way: str) -> None:
    """Requests signed with one key count together, even if other exchanges fetch them."""
    key, other = "made-up-key", "another-made-up-key"
    with venue(good) as (config, recorder):
        config |= {"timeout": 500}
        with Sunx({**config, "apiKey": key}) as one, Sunx({**config, "apiKey": other}) as two:
            urls = [one.sign("sapi/v1/account/balance", "private")["url"] for _ in range(80)]
            for url in urls[:72]:
                one.fetch(url)
            if way == "another key":
                one.apiKey = other
            sender = one if way == "another key" else two
            for url in urls[72:]:
                with suppress(BaseError):
                    sender.fetch(url)
        assert most_in_any_window(recorder.moments, 3) <= 72


@pytest.mark.parametrize("uids", [(None, "1"), ("1", None), ("1", "01", "1")], ids=str)
def test_reads_of_a_key_count_together(uids: tuple[str | None, ...], call: Caller) -> None:
    """Exchanges of one key share one budget, whatever UID they have."""
    with venue(good) as (config, recorder):
        config |= {"timeout": 1500}
        for uid in uids:
            with suppress(RateLimitExceeded):
                call.times(40, "sunx", {**config, "uid": uid}, "fetch_balance")
    assert len(recorder.moments) == 72


def test_keys_of_a_uid_count_together(call: Caller) -> None:
    """Exchanges of one UID share one budget; a key whose UID is known needs no ``uid``."""
    with venue(good) as (config, recorder):
        config |= {"timeout": 1500}
        for more in ({"uid": "1"}, {"uid": "1", "apiKey": "made-up-key"}, {}):
            with suppress(RateLimitExceeded):
                call.times(30, "sunx", config | more, "fetch_balance")
    assert len(recorder.moments) == 72


def test_a_uid_is_not_forgotten() -> None:
    """The UID of a key is known as long as the process lives, however many other keys are used."""
    windows = MemoryWindows()
    users = windows.users_of("sunx", "made-up-key", "1")
    for number in range(1000):
        windows.users_of("sunx", f"made-up-key-{number}", None)
    assert windows.users_of("sunx", "made-up-key", None) == users


@pytest.mark.parametrize("answer", [b"", http(b'{"code":1004,"message":"busy"}'), http(b"x")])
def test_a_failed_call_leaves_no_cycle(answer: bytes) -> None:
    """Its read is freed at once: a finaliser that the garbage collector runs later may fail."""
    with venue(lambda *_: answer) as (config, _), Sunx(config | {"timeout": 500}) as exchange:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            with suppress(BaseError):
                exchange.fetch_balance()
            gc.collect()
            modules = {type(each).__module__ for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert "sunx_adapter.exchange.budget" not in modules


def test_a_request_counts_until_all_of_it_is_sent() -> None:
    """A large request that the peer begins to read after 2 s counts from its last byte on."""
    received: list[float] = []
    begin = threading.Event()

    def read_late(connection: socket.socket) -> None:
        with connection:
            begin.wait()
            end = b""
            while not end.endswith(b"\r\n\r\n"):
                end = end[-3:] + connection.recv(65536)
            received.append(time.monotonic())
            connection.sendall(http(payload("sunx-documented")))

    async def run(port: int) -> None:
        address = {"urls": {"api": {"rest": f"http://127.0.0.1:{port}"}}, "timeout": 20_000}
        large = AsyncSunx({**KEYS, **address, "headers": {"X-Large": "x" * 6_000_000}})
        small = AsyncSunx({**ScriptedTransport(GOOD).config(), "timeout": 20_000})
        async with large, small, asyncio.TaskGroup() as tasks:
            tasks.create_task(large.fetch_balance())
            await asyncio.sleep(2)
            asyncio.get_running_loop().call_later(0.1, begin.set)
            await asyncio.gather(*(small.fetch_balance() for _ in range(72)))
            assert time.monotonic() - received[0] > 2.5

    with tcp_server(read_late) as port:
        asyncio.run(run(port))


def test_reads_that_hang_delay_no_call_longer_than_needed() -> None:
    """Calls that wait while 72 reads hang are served one window later, before newer calls."""
    hung, released = threading.Event(), 0.0
    served: list[tuple[str, float]] = []

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
            while hung.is_set():  # noqa: ASYNC110 - an event of the loop would do the same
                await asyncio.sleep(0.01)
            return httpx.Response(200, content=payload("sunx-documented"))

    async def run() -> None:
        nonlocal released
        config = {**KEYS, "timeout": 30_000, "options": {"transport": Hanging()}}
        async with AsyncSunx(config) as exchange:

            async def read(name: str) -> None:
                await exchange.fetch_balance()
                served.append((name, time.monotonic()))

            async with asyncio.TaskGroup() as tasks:
                for name in ["hung"] * 72 + ["waiting"] * 72:
                    tasks.create_task(read(name))
                await asyncio.sleep(3.5)
                for _ in range(20):
                    tasks.create_task(read("new"))
                await asyncio.sleep(0.1)
                released = time.monotonic()
                hung.clear()

    hung.set()
    asyncio.run(run())
    assert [name for name, _ in served] == ["hung"] * 72 + ["waiting"] * 72 + ["new"] * 20
    assert served[143][1] - released < 5.5  # two windows take 6 s


# -- signals --------------------------------------------------------------------------------

_SLOW_HANDLER = """
import signal, time
from sunx_adapter import Sunx
from tests.test_reliability import GOOD, ScriptedTransport

signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.6))
with Sunx({**ScriptedTransport(GOOD).config(), "rateLimit": 400}) as exchange:
    exchange.fetch_balance()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    exchange.fetch_balance()  # waits for 0.4 s
"""


def test_a_signal_handler_may_outlast_a_wait() -> None:
    """A handler that takes longer than the rest of a wait does not make the call wait for ever."""
    ended = run_python("-c", _SLOW_HANDLER)
    assert ended.returncode == 0, ended.stderr


_HANDLER = """
import itertools, sys
import ccxt
from sunx_adapter import Sunx

action, connection, port = sys.argv[1:]
for number in itertools.count(1):
    lines = itertools.count(1)

    def handler(frame, event, _):
        if event == "line" and next(lines) == number:
            sys.settrace(None)
            try:
                exchange.fetch_balance() if action == "read" else exchange.close()
                if action == "reopen":
                    exchange.__enter__()
            except ccxt.BaseError:
                pass
        return handler

    def trace(frame, event, _):
        return handler if "sunx_adapter" in frame.f_code.co_filename else None

    address = {"rest": f"http://127.0.0.1:{port}"}
    keys = {"apiKey": f"made-up-key-{number}", "secret": "made-up-secret"}
    options = {"maxRetriesOnFailure": 0}
    exchange = Sunx({**keys, "urls": {"api": address}, "options": options})
    if connection == "kept":
        exchange.fetch_balance()
    sys.settrace(trace)
    try:
        exchange.fetch_balance()
    except ccxt.BaseError as error:
        assert "unexpected" not in str(error), error
    sys.settrace(None)
    exchange.close()
    if next(lines) <= number:
        break
print(number)
"""


@pytest.mark.parametrize(
    ("action", "connection"), [("close", "kept"), ("reopen", "new"), ("read", "kept")]
)
def test_a_signal_handler_may_close_and_read(action: str, connection: str) -> None:
    """A signal handler may close, reopen or read at any line of the call that it interrupts."""
    with venue(good) as (config, _):
        port = config["urls"]["api"]["rest"].rpartition(":")[2]
        done = run_python("-c", _HANDLER, action, connection, port)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
