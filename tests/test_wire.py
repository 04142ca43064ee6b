"""The wire on its own: as httpx transports, on another event loop, by host name, and in TLS."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sunx_adapter import AsyncSunx, Sandbox
from sunx_adapter.wire.settings import ConnectionSettings
from sunx_adapter.wire.transports import AsyncWireTransport, WireTransport
from tests.conftest import KEYS, Caller, payload
from tests.faulty import answering, dripping, faulty_server, http, tcp_server

BODY = payload("sunx-documented")


def get(asynchronous: bool, url: str, **options: Any) -> httpx.Response:
    """Send a GET through an httpx client with this package's transport."""
    if not asynchronous:
        with httpx.Client(transport=WireTransport()) as client:
            return client.get(url, **options)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=AsyncWireTransport()) as client:
            return await client.get(url, **options)

    return asyncio.run(run())


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    """Run the test with the synchronous, then the asynchronous transport."""
    return bool(request.param)


def test_transports_of_httpx(asynchronous: bool) -> None:
    """The transports work in any httpx client."""
    answer = http(b'{"a":1}', "Content-Type: application/json", status="404 Nope")
    with faulty_server(answering(answer)) as address:
        response = get(asynchronous, f"{address}/x?y=1", headers={"X-Mine": "1"})
    assert response.status_code == 404
    assert response.json() == {"a": 1}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.NetworkError),
        (b"HTTP/1.1 99 No\r\n\r\n", httpx.NetworkError),
        (http(b"x" * (2**20 + 1)), httpx.NetworkError),
    ],
)
def test_transports_raise_httpx_exceptions(
    asynchronous: bool, answer: bytes, error: type[Exception]
) -> None:
    """Failures of the transports are httpx exceptions."""
    with faulty_server(answering(answer)) as address, pytest.raises(error):
        get(asynchronous, address)


def test_transports_keep_to_the_timeout(asynchronous: bool) -> None:
    """The smallest of httpx's timeouts limits the whole answer, however slowly it arrives."""
    start = time.monotonic()
    with (
        faulty_server(dripping(b"HTTP/1.1 200 OK\r\nX: ")) as address,
        pytest.raises(httpx.TimeoutException),
    ):
        get(asynchronous, address, timeout=0.3)
    assert time.monotonic() - start < 3


def test_transports_only_get(asynchronous: bool) -> None:
    """Any method but GET is refused."""
    request = httpx.Request("POST", "http://127.0.0.1:9", content=b"x")
    with pytest.raises(httpx.UnsupportedProtocol):  # noqa: PT012
        if asynchronous:
            asyncio.run(AsyncWireTransport(ConnectionSettings()).handle_async_request(request))
        WireTransport(ConnectionSettings()).handle_request(request)


def test_uvloop() -> None:
    """The asynchronous classes work on uvloop: kept connections, cancellation, streams, close."""
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        with Sandbox() as venue:
            async with AsyncSunx(venue.config("sunx")) as exchange:
                assert (await exchange.fetch_balance())["total"]
                task = asyncio.create_task(exchange.fetch_balance())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (await exchange.fetch_balance())["total"]
                assert (await exchange.watch_balance())["total"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@contextmanager
def dual_stack(refuse_v6: bool) -> Iterator[int]:
    """Yield a port that answers on 127.0.0.1; on ::1 it refuses or never accepts."""
    with tcp_server(_answer_once) as port:
        if refuse_v6:
            yield port
            return
        full = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with full:
            full.bind(("::1", port))
            full.listen(0)
            # Fill the listen queue, so that no further connection is accepted.
            waiting = [socket.socket(socket.AF_INET6, socket.SOCK_STREAM) for _ in range(4)]
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(("::1", port))
            try:
                yield port
            finally:
                for each in waiting:
                    each.close()


def _answer_once(connection: socket.socket) -> None:
    with connection:
        if connection.recv(65536):
            connection.sendall(http(BODY))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
@pytest.mark.parametrize("refuse_v6", [True, False], ids=["refused", "no answer"])
def test_the_next_address_of_a_host_is_tried(call: Caller, refuse_v6: bool) -> None:
    """If one address of a host refuses or does not answer, the next one is tried."""
    with dual_stack(refuse_v6) as port:
        config = {
            **KEYS,
            "timeout": 5000,
            "enableRateLimit": False,
            "urls": {"api": {"rest": f"http://localhost:{port}"}},
        }
        assert call("sunx", config, "fetch_balance")["total"]


def tls_config(port: int, certificate: Path) -> dict[str, Any]:
    """Return a configuration for a venue over TLS, without the read limit."""
    return {
        **KEYS,
        "enableRateLimit": False,
        "cafile": str(certificate),
        "urls": {"api": {"rest": f"https://127.0.0.1:{port}"}},
    }


def _tls_server(certificate: Path, behind: Callable[[ssl.SSLSocket], None]) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as encrypted:
                behind(encrypted)
        except OSError:
            connection.close()

    return tcp_server(serve)


def test_tls_connections_are_kept(call: Caller, certificate: Path) -> None:
    """One TLS connection serves several requests in turn, with or without session tickets."""
    connections: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        connections.append(1)
        while connection.recv(65536):
            connection.sendall(http(BODY))

    with _tls_server(certificate, answer) as port:
        config = tls_config(port, certificate)
        assert len(call.times(20, "sunx", config, "fetch_balance")) == 20
    assert len(connections) == 1


@pytest.mark.parametrize("apart", [False, True], ids=["one record", "two records"])
def test_two_answers_to_one_request_over_tls(call: Caller, certificate: Path, apart: bool) -> None:
    """A second answer over TLS is never taken as the answer to the next request."""
    forged = http(BODY.replace(b"0.004015101942876636", b"999999999.999999999"))
    connections: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        connections.append(1)
        connection.recv(65536)
        # Corked, so that both records arrive together.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, True)
        for text in (http(BODY), forged) if apart else (http(BODY) + forged,):
            connection.sendall(text)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, False)
        connection.recv(65536)

    with _tls_server(certificate, answer) as port:
        config = tls_config(port, certificate)
        balances = call.times(5, "sunx", config, "fetch_balance")
    assert [each["USDT"]["total"] for each in balances] == [0.004015101942876636] * 5
    assert len(connections) == 5


def test_a_tls_peer_that_closes_idle_connections(call: Caller, certificate: Path) -> None:
    """A peer that closes idle connections makes no call fail."""
    connections: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        connections.append(1)
        if connection.recv(65536):
            connection.sendall(http(BODY))
            # Close sometimes before the next request, sometimes after it.
            threading.Event().wait(len(connections) % 7 * 0.0005)

    def use(exchange: Any) -> Any:
        balances = []
        if not call.asynchronous:
            for number in range(60):
                time.sleep(number % 5 * 0.0005)
                balances.append(exchange.fetch_balance())
            return balances

        async def run() -> list[Any]:
            for number in range(60):
                await asyncio.sleep(number % 5 * 0.0005)
                balances.append(await exchange.fetch_balance())
            return balances

        return run()

    with _tls_server(certificate, answer) as port:
        config = {**tls_config(port, certificate), "options": {"maxRetriesOnFailure": 5}}
        balances = call.using("sunx", config, use)
    assert len(balances) == 60
    assert all(balance["total"] for balance in balances)


def test_calls_cancelled_during_the_tls_handshake(certificate: Path) -> None:
    """Calls cancelled during the TLS handshake disturb neither later calls nor the event loop."""
    slow = threading.Event()

    def serve(connection: socket.socket) -> None:
        slow.wait(0.05)  # the call is cancelled during the handshake
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        try:
            with context.wrap_socket(connection, server_side=True) as encrypted:
                while encrypted.recv(65536):
                    encrypted.sendall(http(BODY))
        except OSError:
            connection.close()

    loop_errors: list[dict[str, Any]] = []

    async def run(port: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, each: loop_errors.append(each))
        config = tls_config(port, certificate)
        async with AsyncSunx(config) as exchange:
            for _ in range(10):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(exchange.fetch_balance(), 0.02)
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
            slow.set()
            for _ in range(5):
                assert (await exchange.fetch_balance())["total"]

    with tcp_server(serve) as port:
        asyncio.run(run(port))
    assert not loop_errors


def test_hanging_name_server(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging DNS lookup delays neither its own call past the timeout nor other lookups."""
    stuck = threading.Event()
    real = socket.getaddrinfo

    def hanging(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "stuck.invalid":
            stuck.wait(30)
            raise socket.gaierror("no answer")
        return real(host, *rest, **more)

    # The system's resolver cannot be made to hang in another way.
    monkeypatch.setattr(socket, "getaddrinfo", hanging)

    def use(exchange: Any) -> Any:
        if not call.asynchronous:
            with pytest.raises(Exception, match="300 ms"):
                exchange.fetch_balance()
            return None

        async def run() -> None:
            others = [asyncio.create_task(exchange.fetch_balance()) for _ in range(20)]
            loop = asyncio.get_running_loop()
            # asyncio's own lookups and threads still work.
            assert await asyncio.wait_for(loop.getaddrinfo("127.0.0.1", 1), 5)
            for result in await asyncio.gather(*others, return_exceptions=True):
                assert "300 ms" in str(result)

        return run()

    start = time.monotonic()
    call.using(
        "sunx",
        {
            **KEYS,
            "timeout": 300,
            "enableRateLimit": False,
            "urls": {"api": {"rest": "https://stuck.invalid"}},
            "options": {"maxRetriesOnFailure": 0},
        },
        use,
    )
    assert time.monotonic() - start < 3
    stuck.set()


def test_imports_of_an_exchange() -> None:
    """Making an exchange imports neither httpx nor the command line."""
    code = (
        "import sys; from sunx_adapter import Sunx; Sunx({'apiKey': 'made-up', 'secret': 'x'}); "
        "print(sorted({'httpx', 'httpcore', 'typer', 'rich', 'redis'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_FORKS_DURING_TLS = """
import os, signal, ssl, threading
from sunx_adapter.wire.settings import ConnectionSettings

def begin_handshake():
    context = ConnectionSettings().tls_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass

def repeat():
    while True:
        begin_handshake()

for _ in range(4):
    threading.Thread(target=repeat, daemon=True).start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        begin_handshake()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_during_tls() -> None:
    """The child of a fork can use TLS, whatever the parent's threads were doing in OpenSSL."""
    # A new interpreter: the first use of OpenSSL is the most sensitive.
    command = [sys.executable, "-W", "ignore", "-c", _FORKS_DURING_TLS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
