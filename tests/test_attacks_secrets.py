"""Attacks on secrets and on the host from outside, by a venue that repeats what it gets."""

import asyncio
import json
import logging
import os
import signal
import threading
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import httpx
import pytest
from ccxt.base.errors import AuthenticationError, BaseError

from sunx_adapter import AsyncSunx, ExchangeHost, HtxFutures, Sunx
from sunx_adapter.hookspecs import ExchangeOffer, hookimpl
from sunx_adapter.keys import KeysError, config_from_environment
from tests.conftest import Caller, config_answering, frames_of, payload
from tests.faulty import http
from tests.processes import run_python
from tests.test_attacks import unlimited, venue

SECRET = "made-up+secret/for=tests"
API_KEY = "made-up-api-key-for-tests"
CONTROL_CHARACTERS = "\x1b]0;owned\x07\r\n\x9b31m"


def spellings(signature: str) -> list[str]:
    """Return the ways in which a peer may spell a signature."""
    encoded = quote(signature, safe="")
    raw = b64decode(signature)
    return [
        signature,
        signature.rstrip("="),
        encoded,
        encoded.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d"),
        quote(encoded, safe=""),
        signature.replace("/", "\\/"),
        raw.hex(),
        raw.hex().upper(),
        urlsafe_b64encode(raw).decode(),
        "".join(f"\\u{ord(letter):04x}" for letter in signature),
        "".join(f"&#{ord(letter)};" for letter in signature),
        f"%{ord(signature[0]):02x}{signature[1:]}",
    ]


def signature_of(request: bytes) -> str:
    query = request.split(b"?")[1].split(b" ")[0].decode()
    return parse_qs(query)["Signature"][0]


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """Yield the formatted records of all loggers."""
    records: list[str] = []

    class RecordingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(self.format(record))

    root, handler = logging.getLogger(), RecordingHandler(level=0)
    level = root.level
    root.addHandler(handler)
    root.setLevel(0)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


Echo = Callable[[str, str], bytes]


def _as_error(text: str, key: str) -> bytes:
    return http(json.dumps({"code": 9999, "message": f"{text} {key}{CONTROL_CHARACTERS}"}).encode())


def _as_busy(text: str, key: str) -> bytes:
    return http(json.dumps({"code": 1004, "message": f"{text} {key}{CONTROL_CHARACTERS}"}).encode())


def _as_page(text: str, key: str) -> bytes:
    return http(f"<html>{text} {key}{CONTROL_CHARACTERS}</html>".encode(), status="502 Bad Gateway")


def _as_header(text: str, key: str) -> bytes:
    return http(b"{}", f"X-Echo: {text}{key}", f"Location: /{text}{key}", status="302 Found")


def _as_no_http(text: str, key: str) -> bytes:
    return f"{text} {key}{CONTROL_CHARACTERS}\r\n\r\n".encode("utf-8", "replace")


ECHOES: list[Echo] = [_as_error, _as_busy, _as_page, _as_header, _as_no_http]


@pytest.mark.parametrize("echo", ECHOES, ids=lambda echo: echo.__name__)
@pytest.mark.parametrize("number", range(12))
def test_echoed_secrets_are_hidden(
    call: Caller, echo: Echo, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a venue repeats signature and key in any way, neither leaves the package."""
    sent: list[str] = []

    def answer(_: int, request: bytes) -> bytes:
        sent.append(signature_of(request))
        return echo(spellings(sent[-1])[number], API_KEY)

    with venue(answer) as (config, _), all_logs() as log:
        config |= {"apiKey": API_KEY, "secret": SECRET, "verbose": True, "enableRateLimit": False}
        config["options"] |= {"maxRetriesOnFailure": 0 if number else 1}  # a retry is logged too
        with pytest.raises(BaseError) as caught:
            call("sunx", config, "fetch_balance")
    printed = capsys.readouterr().out
    assert "fetch Request" in printed
    texts = {
        "exception": str(caught.value),
        "repr": repr(caught.value),
        "frames": frames_of(caught.value),
        "log": "\n".join(log),
        "printed": printed,
    }
    assert sent
    for where, text in texts.items():
        for signature in sent:
            for spelling in spellings(signature):
                assert spelling not in text, where
        assert SECRET not in text, where
    for where in ("exception", "repr", "log", "printed"):
        assert API_KEY not in texts[where], where
    assert texts["exception"].isprintable()
    assert all(line.isprintable() for record in log for line in record.splitlines())


def test_returned_exceptions_hide_the_keys() -> None:
    """An exception returned by ``fetch_balances()`` has no frame with keys."""
    accounts: dict[str, tuple[str, dict[str, Any]]] = {
        "refused": ("sunx", {"apiKey": API_KEY, "secret": SECRET, "password": "x"}),
        "unknown": ("no-such-exchange", {"apiKey": API_KEY, "secret": SECRET}),
        "spot": ("sunx", {"apiKey": API_KEY, "secret": SECRET, "options": {"defaultType": "spot"}}),
    }
    results = asyncio.run(ExchangeHost().fetch_balances(accounts))
    for result in results.values():
        assert isinstance(result, Exception)
        assert result.__context__ is None
        assert result.__cause__ is None
        trace: Any = result.__traceback__
        while trace is not None:
            assert SECRET not in repr(trace.tb_frame.f_locals)
            trace = trace.tb_next


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_hides_the_signed_request(kind: type[BaseException]) -> None:
    """The traceback of an interrupted call has no frame with the signed request."""

    def interrupt(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGUSR1, interrupt)
    release = threading.Event()
    try:
        with venue(lambda *_: (release.wait(5), b"")[1]) as (config, recorder):
            config |= {"apiKey": API_KEY, "secret": SECRET, "enableRateLimit": False}
            exchange = Sunx(config)

            def send() -> None:
                while not recorder.moments:
                    threading.Event().wait(0.01)
                os.kill(os.getpid(), signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(kind) as caught:
                exchange.fetch_balance()
            sender.join()
            exchange.close()
            release.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    chain: BaseException | None = caught.value
    while chain is not None:
        trace = chain.__traceback__
        while trace is not None:
            shown = repr(trace.tb_frame.f_locals)
            assert "Signature=" not in shown
            trace = trace.tb_next
        chain = chain.__context__


@pytest.mark.parametrize(
    "content",
    [
        b'[sunx]\nsecret = "made-up-secret-in-file"\nunknown = 1\n',
        b'[sunx]\nsecret = "made-up-secret-in-file\xff"\n',
        b'[sunx]\nsecret = "made-up-secret-in-file"\nsecret = broken\n',
        b'sunx = "made-up-secret-in-file"\n',
    ],
)
def test_invalid_keys_file_is_not_quoted(tmp_path: Path, content: bytes) -> None:
    """No exception about a keys file, nor its context, quotes the file's content."""
    file = tmp_path / "keys.toml"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(KeysError) as caught:
        config_from_environment("sunx", {"SUNX_ADAPTER_KEYS": str(file)})
    chain: BaseException | None = caught.value
    while chain is not None:
        trace = chain.__traceback__
        while trace is not None:
            if "sunx_adapter" in trace.tb_frame.f_code.co_filename:
                assert "made-up-secret-in-file" not in repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
        assert "made-up-secret-in-file" not in repr(chain) + repr(getattr(chain, "object", ""))
        chain = chain.__context__


class _RaisingPlugin:
    """A plugin whose hook raises this exception."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    @hookimpl
    def exchange_offers(self) -> list[ExchangeOffer]:
        raise self._error


class _UnprintableError(BaseException):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("number", range(4))
def test_plugin_that_raises_base_exceptions(number: int) -> None:
    """Whatever a plugin raises is reported as a problem, and the other plugins still work."""
    error = [SystemExit(3), GeneratorExit(), BaseException("x"), _UnprintableError()][number]
    host = ExchangeHost(discover=False)
    host.register(_RaisingPlugin(error), "bad")
    assert "binance" in [found.offer.id for found in host.offers()]
    assert [problem.plugin for problem in host.problems] == ["bad"]


@pytest.mark.parametrize("wrong", [{"id": 1}, {"id": None}, {"sync_class": b"x"}, {"has": None}])
def test_malformed_offer(wrong: dict[str, Any]) -> None:
    """A malformed offer is reported as a problem, and the other offers still work."""
    offer = ExchangeOffer(
        **{"id": "x", "name": "X", "sync_class": "a:B", "async_class": "a:B"} | wrong
    )

    class Plugin:
        @hookimpl
        def exchange_offers(self) -> list[ExchangeOffer]:
            return [offer]

    host = ExchangeHost(discover=False)
    host.register(Plugin(), "bad")
    assert "binance" in [found.offer.id for found in host.offers()]
    assert [problem.plugin for problem in host.problems] == ["bad"]


def test_doctor_hides_control_characters() -> None:
    """The doctor prints no control characters from a venue, and copes with odd values."""

    def answer(_: int, request: bytes) -> bytes:
        if b"asset_mode" in request:
            return http(b'{"code":200,"data":{"asset_mode":1e999},"ts":1}')
        if b"heartbeat" in request:
            return http(b'{"status":"ok","data":{"linear_swap_heartbeat":1}}')
        return http(
            payload("htx-v5-live-rest"),
            "ratelimit-limit: 72\t[31m" + "9" * 100,
            "ratelimit-remaining: 70",
        )

    with venue(answer) as (config, _):
        environ = {
            **os.environ,
            "HTXFUTURES_REST_URL": config["urls"]["api"]["rest"],
            "HTXFUTURES_API_KEY": API_KEY,
            "HTXFUTURES_API_SECRET": SECRET,
        }
        done = run_python("-m", "sunx_adapter", "doctor", "-e", "htxfutures", env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert SECRET not in done.stdout + done.stderr
    assert API_KEY not in done.stdout + done.stderr


def test_summary_of_info_with_json_numbers() -> None:
    """``parse_account_summary()`` accepts an ``info`` with amounts as JSON numbers."""
    answer = json.loads(payload("htx-v5-documented"))
    answer["data"] |= {"equity": 12.5, "initial_margin": 0.25}
    exchange = HtxFutures(config_answering(json.dumps(answer).encode()))
    summary = exchange.parse_account_summary(exchange.fetch_balance()["info"])
    assert str(summary.equity) == "12.5"
    assert str(summary.initial_margin) == "0.25"


def test_keys_file_is_a_pipe(tmp_path: Path) -> None:
    """A keys file that is not a regular file is refused at once."""
    pipe = tmp_path / "keys.toml"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KeysError, match="not a regular file"):
        config_from_environment("sunx", {"SUNX_ADAPTER_KEYS": str(pipe)})


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only for root")
def test_keys_file_of_another_user(tmp_path: Path) -> None:
    """Even root reads no keys from a file that another user owns."""
    file = tmp_path / "keys.toml"
    file.write_text('[sunx]\napiKey = "x"\n')
    file.chmod(0o600)
    os.chown(file, 12345, 12345)
    with pytest.raises(KeysError, match="another user"):
        config_from_environment("sunx", {"SUNX_ADAPTER_KEYS": str(file)})


def test_settings_that_change_with_each_call() -> None:
    """If settings change with each call, connections of earlier settings are closed."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def run(config: dict[str, Any]) -> int:
        async with AsyncSunx({**config, "enableRateLimit": False}) as exchange:
            await exchange.fetch_balance()
            before = open_files()
            for number in range(40):
                exchange.headers = {"X-Number": str(number)}
                exchange.trust_env = bool(number % 2)
                await exchange.fetch_balance()
            return open_files() - before

    with venue(lambda *_: http(payload("sunx-documented"))) as (config, _):
        # The server's ends are in this process, too.
        assert asyncio.run(run(config)) <= 6


@pytest.mark.parametrize("length", range(150, 210, 7))
def test_signature_at_the_cut_of_a_long_text(call: Caller, length: int) -> None:
    """Cutting a long text leaves no part of a signature visible."""
    sent: list[str] = []

    def fail(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.params["Signature"])
        raise httpx.RemoteProtocolError("x" * length + sent[-1], request=request)

    options = {"transport": httpx.MockTransport(fail), "maxRetriesOnFailure": 0}
    with pytest.raises(BaseError) as caught:
        call("sunx", {"apiKey": API_KEY, "secret": SECRET, "options": options}, "fetch_balance")
    assert sent[0][:8] not in str(caught.value)


def _as_amount(text: str) -> bytes:
    return json.dumps(
        {"code": 200, "data": {"details": [{"currency": text, "equity": text}]}}
    ).encode()


def _as_time(text: str) -> bytes:
    return json.dumps({"code": 200, "ts": text, "data": {"details": []}}).encode()


def _as_duplicate_keys(text: str) -> bytes:
    return f'{{"code": 200, "data": {{"details": [], "{text}": 1, "{text}": 2}}}}'.encode()


def _as_code(text: str) -> bytes:
    return json.dumps({"code": text, "message": text}).encode()


@pytest.mark.parametrize("number", [0, 2, 6, 9])
@pytest.mark.parametrize("before", ["", "x" * 10, "x" * 4060])
@pytest.mark.parametrize("body", [_as_amount, _as_time, _as_duplicate_keys, _as_code])
def test_echoed_signature_in_any_field(
    call: Caller, body: Callable[[str], bytes], before: str, number: int
) -> None:
    """A signature in place of a figure, a time, a name or a code is hidden, also if it is cut."""
    sent: list[str] = []

    def answer(_: int, request: bytes) -> bytes:
        sent.append(spellings(signature_of(request))[number])
        return http(body(before + sent[-1]))

    with venue(answer) as (config, _), pytest.raises(BaseError) as caught:
        call("sunx", unlimited(config), "fetch_balance")
    assert sent[0][:30] not in str(caught.value)


def test_signature_of_an_earlier_request_is_hidden() -> None:
    """If a venue repeats the signature of an earlier request, it is hidden, too."""
    sent: list[str] = []

    def answer(number: int, request: bytes) -> bytes:
        sent.append(signature_of(request))
        refusal = json.dumps({"code": 9999, "message": f"seen before: {sent[0]}"}).encode()
        return http(refusal if number else payload("sunx-documented"))

    with venue(answer) as (config, _), Sunx(unlimited(config)) as exchange:
        exchange.fetch_balance()
        with pytest.raises(BaseError, match="seen before") as caught:
            exchange.fetch_balance({"another": "parameter"})
    assert sent[0] != sent[1]
    assert sent[0] not in str(caught.value)


def test_key_that_was_replaced_during_the_call() -> None:
    """The key of the request is hidden, even if the exchange has another key by then."""
    exchanges: list[Sunx] = []

    def answer(_number: int, _request: bytes) -> bytes:
        exchanges[0].apiKey = "another-made-up-key"
        return http(json.dumps({"code": 9999, "message": f"{API_KEY} is refused"}).encode())

    with venue(answer) as (config, _), Sunx(unlimited(config, apiKey=API_KEY)) as exchange:
        exchanges.append(exchange)
        url = exchange.sign("sapi/v1/account/balance", "private")["url"]
        for method, argument in (("fetch_balance", {}), ("fetch", url)):
            with pytest.raises(BaseError, match="is refused") as caught:
                getattr(exchange, method)(argument)
            assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("spelling", ["\\", "%25", "&#0", "Signature=", "Signature ", "a://"])
def test_text_that_takes_long_to_clean(spelling: str) -> None:
    """No text from a peer delays the exception beyond the timeout."""

    def answer(_: int, request: bytes) -> bytes:
        text = signature_of(request) + API_KEY + spelling * (60_000 // len(spelling))
        return http(b"", f"Location: /{text}", status="302 Found")

    with venue(answer) as (config, _), Sunx(unlimited(config, apiKey=API_KEY)) as exchange:
        start = time.monotonic()
        with pytest.raises(BaseError, match="redirect"):
            exchange.fetch_balance()
        assert time.monotonic() - start < exchange.timeout / 1000


@pytest.mark.parametrize("command", [["balance", "--verbose"], ["balance", "--json"], ["doctor"]])
@pytest.mark.parametrize("number", [0, 5, 9])
def test_echoed_secrets_on_the_command_line(command: list[str], number: int) -> None:
    """The command line prints no echoed secret either, not even with ``--verbose``."""
    sent: list[str] = []

    def answer(_: int, request: bytes) -> bytes:
        if b"Signature=" not in request:
            return http(b'{"code":200,"ts":1}')
        sent.append(signature_of(request))
        return _as_error(spellings(sent[-1])[number], API_KEY)

    with venue(answer) as (config, _):
        environ = {
            **os.environ,
            "SUNX_REST_URL": config["urls"]["api"]["rest"],
            "SUNX_API_KEY": API_KEY,
            "SUNX_API_SECRET": SECRET,
        }
        done = run_python("-m", "sunx_adapter", *command, "-e", "sunx", env=environ)
    shown = done.stdout + done.stderr
    assert done.returncode == 1
    assert sent
    for signature in sent:
        assert not [each for each in spellings(signature) if each in shown]
    assert SECRET not in shown
    assert API_KEY not in shown
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize("user", ["bob", "b%C3%B6b"])
def test_proxy_password_in_basic_authentication(call: Caller, user: str) -> None:
    """A proxy's password is hidden, even if the peer repeats the Proxy-Authorization header."""
    basic = b64encode(f"{unquote(user)}:Sup3r-proxy-passw0rd".encode()).decode()
    answer = {"code": 1003, "message": f"denied: Proxy-Authorization: Basic {basic}"}
    config = config_answering(json.dumps(answer).encode())
    config["httpProxy"] = f"http://{user}:Sup3r-proxy-passw0rd@127.0.0.1:1"
    with pytest.raises(AuthenticationError, match="denied") as failure:
        call("sunx", config, "fetch_balance")
    assert basic.rstrip("=") not in str(failure.value)
