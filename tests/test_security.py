import asyncio
import contextlib
import http.server
import json
import multiprocessing
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from ccxt.base.errors import BadRequest, BaseError, NetworkError, NotSupported, RequestTimeout

from sunx_adapter import AsyncSunx, Sandbox, Sunx
from sunx_adapter.protocol.signing import HmacSigner
from tests.conftest import KEYS, Caller, config_answering, config_for, frames_of, payload
from tests.faulty import tcp_server
from tests.proxies import tunnelling_proxy

BODY = payload("sunx-documented")
Answer = Callable[[str], tuple[int, bytes]]


@contextmanager
def server(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """Run a plain HTTP server; yield its port and the request targets it received."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(http.server.HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # clients reject the certificate on purpose

    with QuietServer(("127.0.0.1", 0), Handler) as running:
        if tls is not None:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield running.server_address[1], seen
        finally:
            running.shutdown()
            thread.join()


def good(_: str) -> tuple[int, bytes]:
    return 200, BODY


# -- certificates ---------------------------------------------------------------------------


def tls_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_unknown_certificate(call: Caller, certificate: Path) -> None:
    """A certificate of an unknown authority is refused; the error mentions ``cafile``."""
    with server(good, tls_of(certificate)) as (port, seen):
        with pytest.raises(NetworkError, match="cafile"):
            call("sunx", config_for(f"https://127.0.0.1:{port}"), "fetch_balance")
        assert not seen


def test_custom_authority(call: Caller, certificate: Path) -> None:
    """An authority given by ``cafile`` is trusted."""
    with server(good, tls_of(certificate)) as (port, _):
        settings = config_for(f"https://127.0.0.1:{port}", cafile=str(certificate))
        assert call("sunx", settings, "fetch_total_balance")


def test_wrong_host_name(call: Caller, certificate: Path) -> None:
    """A certificate for another host is refused, even from a trusted authority."""
    with server(good, tls_of(certificate)) as (port, seen):
        settings = config_for(f"https://localhost:{port}", cafile=str(certificate))
        with pytest.raises(NetworkError, match="certificate"):
            call("sunx", settings, "fetch_balance")
        assert not seen


def test_session_keys_are_not_logged(
    call: Caller, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSLKEYLOGFILE has an effect only with ``trust_env``."""
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    # TLS contexts are cached by their settings; a new file name makes a new context.
    authority = tmp_path / "authority.pem"
    authority.write_bytes(certificate.read_bytes())
    with server(good, tls_of(certificate)) as (port, _):
        settings = config_for(f"https://127.0.0.1:{port}", cafile=str(authority))
        call("sunx", settings, "fetch_balance")
        assert not log.exists()
        call("sunx", {**settings, "trust_env": True}, "fetch_balance")
        assert log.exists()


# -- proxies --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["httpProxy", "http_proxy", "httpsProxy"])
def test_proxy(call: Caller, key: str) -> None:
    """With a proxy, the request for the venue goes to the proxy."""
    with server(good) as (port, seen):
        settings = config_for("http://127.0.0.1:9", **{key: f"http://127.0.0.1:{port}"})
        assert call("sunx", settings, "fetch_total_balance")
    assert seen[0].startswith("http://127.0.0.1:9/sapi/v1/account/balance?")


def test_proxy_set_later(call: Caller) -> None:
    """A proxy set between two calls is used by the second."""

    def use(exchange: Any) -> Any:
        if call.asynchronous:

            async def run() -> None:
                await exchange.fetch_balance()
                exchange.httpProxy = proxy
                await exchange.fetch_balance()

            return run()
        exchange.fetch_balance()
        exchange.httpProxy = proxy
        return exchange.fetch_balance()

    with server(good) as (port, direct), server(good) as (proxy_port, proxied):
        proxy = f"http://127.0.0.1:{proxy_port}"
        call.using("sunx", config_for(f"http://127.0.0.1:{port}"), use)
        assert (len(direct), len(proxied)) == (1, 1)


TUNNELS = [
    ("httpsProxy", "http", "user:pass word"),
    ("httpsProxy", "https", ""),
    ("socksProxy", "socks5", "user:pass word"),
    ("socksProxy", "socks5h", ""),
]


@pytest.mark.parametrize(("key", "scheme", "password"), TUNNELS, ids=[row[1] for row in TUNNELS])
def test_tunnel(call: Caller, certificate: Path, key: str, scheme: str, password: str) -> None:
    """TLS goes through the proxy's tunnel, and the venue's certificate is verified."""
    user = f"{quote(password, safe=':')}@" if password else ""
    to_proxy = tls_of(certificate) if scheme == "https" else None
    with (
        server(good, tls_of(certificate)) as (port, seen),
        tunnelling_proxy(password, to_proxy) as proxy,
    ):
        address = f"{scheme}://{user}127.0.0.1:{proxy.port}"
        settings = config_for(
            f"https://127.0.0.1:{port}", cafile=str(certificate), **{key: address}
        )
        assert len(call.times(2, "sunx", settings, "fetch_balance")) == 2
        assert len(seen) == 2
        assert set(proxy.tunnels) == {f"127.0.0.1:{port}"}
        made = len(proxy.tunnels)
        with pytest.raises(NetworkError, match="certificate"):
            call("sunx", {**settings, "cafile": None}, "fetch_balance")
        assert len(seen) == 2
        assert len(proxy.tunnels) <= made + 1


STALLING: dict[str, tuple[str, list[bytes]]] = {
    "http, no answer": ("httpsProxy", []),
    "http, no TLS": ("httpsProxy", [b"HTTP/1.1 200 OK\r\n\r\n"]),
    "https, no answer": ("httpsProxy", []),
    "https, no TLS": ("httpsProxy", [b"HTTP/1.1 200 OK\r\n\r\n"]),
    "socks5, no answer": ("socksProxy", []),
    "socks5, no TLS": ("socksProxy", [b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6)]),
}


@pytest.mark.parametrize("kind", STALLING)
def test_stalled_tunnel(call: Caller, certificate: Path, kind: str) -> None:
    """A proxy that stalls, or a stalled host behind it, does not hold a call past its timeout."""
    key, answers = STALLING[kind]
    scheme = kind.partition(",")[0]
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if scheme == "https":
                client = tls_of(certificate).wrap_socket(client, server_side=True)
            for answer in answers:
                client.recv(65536)
                client.sendall(answer)
            ended.wait(60)
        client.close()

    with tcp_server(serve) as port:
        settings = config_for("https://127.0.0.1:9", cafile=str(certificate), timeout=500)
        settings[key] = f"{scheme}://127.0.0.1:{port}"
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            call("sunx", settings, "fetch_balance")
        assert time.monotonic() - start < 5
        ended.set()


CONNECTED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 200 Connection established\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n",
]


@pytest.mark.parametrize("answer", CONNECTED)
def test_responses_to_connect(call: Caller, certificate: Path, answer: bytes) -> None:
    """Length and connection headers of a CONNECT response are ignored (RFC 9110, 9.3.6)."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            client.sendall(answer)
            with tls_of(certificate).wrap_socket(client, server_side=True) as venue:
                venue.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n"
                venue.sendall(head.encode() + BODY)
                venue.recv(65536)

    with tcp_server(serve) as port:
        settings = config_for("https://127.0.0.1:9", cafile=str(certificate))
        settings["httpsProxy"] = f"http://127.0.0.1:{port}"
        assert call("sunx", settings, "fetch_balance")["USDT"]["total"]


def test_socks_proxy_closes_the_connection(call: Caller) -> None:
    """A SOCKS proxy that closes the connection without an answer raises NetworkError."""
    with tcp_server(lambda client: client.close()) as port:
        settings = config_for("https://127.0.0.1:9", socksProxy=f"socks5://127.0.0.1:{port}")
        with pytest.raises(NetworkError):
            call("sunx", settings, "fetch_balance")


@pytest.mark.parametrize(
    "address",
    [
        *("http://user:s3c/ret@h:1", "http://user:12#s3cret@h:1", "http://user:s3c?ret@h:1"),
        *("http://user:s3cret@", "socks5://user:s3crét@h:1", f"socks5://user:{'s3cret' * 50}@h:1"),
    ],
)
def test_invalid_proxy_address(address: str) -> None:
    """An invalid proxy address is refused at once, and the error quotes no part of it."""
    with pytest.raises(BadRequest) as caught:
        Sunx({"httpsProxy": address})
    assert "s3c" not in str(caught.value)
    assert "12" not in str(caught.value)


@pytest.mark.parametrize(("key", "scheme"), [("httpsProxy", "http"), ("socksProxy", "socks5")])
def test_proxy_refuses_the_password(call: Caller, key: str, scheme: str) -> None:
    """A wrong proxy password raises NetworkError without quoting the password."""
    with tunnelling_proxy("user:right") as proxy:
        address = f"{scheme}://user:wrong-one@127.0.0.1:{proxy.port}"
        settings = config_for("https://127.0.0.1:9", **{key: address})
        with pytest.raises(NetworkError) as caught:
            call("sunx", settings, "fetch_balance")
        assert "wrong-one" not in str(caught.value)
        assert not proxy.tunnels


@pytest.mark.parametrize("name", ["proxies", "proxyUrl", "aiohttp_proxy"])
def test_unsupported_proxy_settings(call: Caller, name: str) -> None:
    """An unsupported proxy setting is refused, and nothing is sent directly."""

    def use(exchange: Any) -> Any:
        setattr(exchange, name, "http://127.0.0.1:9")
        return exchange.fetch_balance()

    with server(good) as (port, seen):
        with pytest.raises(NotSupported, match=name):
            call.using("sunx", config_for(f"http://127.0.0.1:{port}"), use)
        assert not seen


def test_environment_is_not_trusted(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY has an effect only with ``trust_env``."""
    with server(good) as (port, direct), server(good) as (proxy_port, proxied):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy_port}")
        monkeypatch.setenv("no_proxy", "")
        settings = config_for(f"http://127.0.0.1:{port}")
        call("sunx", settings, "fetch_balance")
        assert (len(direct), len(proxied)) == (1, 0)
        call("sunx", {**settings, "trust_env": True}, "fetch_balance")
        assert (len(direct), len(proxied)) == (1, 1)


# -- signing --------------------------------------------------------------------------------


def test_gateway_path_is_not_signed(call: Caller) -> None:
    """Behind a gateway with its own path, the venue's path and host are signed."""
    with server(good) as (port, seen):
        options = {"signatureHost": "API.HBDM.com"}
        settings = config_for(f"http://127.0.0.1:{port}/gateway", options=options)
        call("htxfutures", settings, "fetch_balance")
    path, _, query = seen[0].partition("?")
    assert path == "/gateway/v5/account/balance"
    unsigned, _, _ = query.partition("&Signature=")
    text = f"GET\napi.hbdm.com\n/v5/account/balance\n{unsigned}"
    assert parse_qs(query)["Signature"] == [HmacSigner(KEYS["secret"]).sign(text)]


# -- secrets --------------------------------------------------------------------------------


def echoes(path: str) -> list[tuple[int, bytes]]:
    """Return answers of a venue or proxy that repeat the request in different ways."""
    query = urlsplit(path).query
    signature = parse_qs(query)["Signature"][0]
    return [
        (500, f"<html>cannot serve {path}</html>".encode()),
        (403, f"Signature: {signature}".encode()),
        (200, json.dumps({"code": 1003, "message": f"expected x but got {signature}"}).encode()),
        (200, json.dumps({"code": 1030, "message": "x" * 140 + query}).encode()),
        (200, json.dumps({"code": 9999, "message": query.replace("&", "&amp;")}).encode()),
        (302, b""),
    ]


@pytest.mark.parametrize("number", range(6))
def test_echoed_secrets_are_hidden(
    call: Caller,
    number: int,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If a peer repeats the request, no signature or full key appears anywhere."""
    caplog.set_level(0)
    with server(lambda path: echoes(path)[number]) as (port, seen):
        settings = config_for(f"http://127.0.0.1:{port}", verbose=True)
        with pytest.raises(BaseError) as caught:
            call("sunx", settings, "fetch_balance")
    raw = parse_qs(urlsplit(seen[0]).query)["Signature"][0]
    encoded = seen[0].partition("Signature=")[2]
    # Without this test's own frame, which has the request.
    inside = frames_of(caught.value)
    assert inside
    printed = capsys.readouterr().out
    assert "fetch Request" in printed
    for text in (str(caught.value), caplog.text, printed, inside):
        for hidden in (raw, encoded, KEYS["secret"]):
            assert hidden not in text
    for text in (str(caught.value), caplog.text, printed):
        assert KEYS["apiKey"] not in text


def test_cancelled_call_hides_the_request() -> None:
    """The traceback of a cancelled call has no frame with the signed request."""

    def never(_: str) -> tuple[int, bytes]:
        release.wait(20)
        return good("")

    async def run(address: str) -> BaseException:
        async with AsyncSunx(config_for(address)) as exchange:
            task = asyncio.create_task(exchange.fetch_balance())
            await asyncio.sleep(0.2)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as error:
                return error
        raise AssertionError("not cancelled")

    release = threading.Event()
    with server(never) as (port, _):
        error = asyncio.run(run(f"http://127.0.0.1:{port}"))
        release.set()
    chain: BaseException | None = error
    while chain is not None:
        trace = chain.__traceback__
        while trace is not None:
            assert "Signature=" not in repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
        chain = chain.__context__


def test_control_characters_are_removed(call: Caller) -> None:
    """Control characters in a venue's message do not reach the terminal."""
    body = json.dumps({"code": 9999, "message": "a\x1b]0;owned\x07\nb"}).encode()
    with pytest.raises(BaseError) as caught:
        call("sunx", config_answering(body), "fetch_balance")
    assert str(caught.value).isprintable()


# -- processes ------------------------------------------------------------------------------


def _read_in_child(exchange: Any, sending: Any) -> None:
    sending.send(exchange.fetch_balance()["total"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork(sandbox: Sandbox) -> None:
    """The child of a fork makes its own connections and gets its own answers."""
    with Sunx({**sandbox.config("sunx"), "number": str}) as exchange:
        right = exchange.fetch_balance()["total"]
        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)
        children = [
            context.Process(target=_read_in_child, args=(exchange, sending)) for _ in range(4)
        ]
        for child in children:
            child.start()
        assert exchange.fetch_balance()["total"] == right
        assert [receiving.recv() for _ in children] == [right] * 4
        for child in children:
            child.join()


def test_threads_share_connections_without_waiting() -> None:
    """Concurrent calls of many threads do not wait for each other's connections."""
    barrier = threading.Barrier(40, timeout=20)

    def slow(_: str) -> tuple[int, bytes]:
        barrier.wait()
        return good("")

    class Threading(http.server.ThreadingHTTPServer):
        daemon_threads = True

    failures: list[BaseException] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, body = slow("")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def read(exchange: Any) -> None:
        try:
            exchange.fetch_balance()
        except BaseError as error:
            failures.append(error)

    with Threading(("127.0.0.1", 0), Handler) as running:
        running.request_queue_size = 64
        server_thread = threading.Thread(target=running.serve_forever)
        server_thread.start()
        port = running.server_address[1]
        with Sunx(config_for(f"http://127.0.0.1:{port}", enableRateLimit=False)) as exchange:
            threads = [threading.Thread(target=read, args=(exchange,)) for _ in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        running.shutdown()
        server_thread.join()
    assert not failures


def test_idle_connection_was_closed(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """A call on a kept connection that the peer closed is retried and logged like any other."""
    seen: list[int] = []

    class Closing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.client_address[1])
            if len(seen) == 2:
                self.close_connection = True  # instead of an answer
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Closing) as running:
        server_thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        server_thread.start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        settings = config_for(address, options={"maxRetriesOnFailure": 1})
        call.times(2, "sunx", settings, "fetch_balance")
        running.shutdown()
        server_thread.join()
    assert len(seen) == 3
    assert seen[0] == seen[1]
    assert sum("trying again" in record.getMessage() for record in caplog.records) == 1
