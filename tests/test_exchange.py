import asyncio
import copy
import gc
import inspect
import json
import logging
import pickle
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import ccxt
import ccxt.async_support
import httpx
import pytest
from ccxt.base.errors import (
    AuthenticationError,
    BadRequest,
    BaseError,
    ExchangeClosedByUser,
    NotSupported,
)

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sandbox, Sunx
from sunx_adapter.protocol.errors import ERROR_RULES
from tests.conftest import CLASSES, KEYS, Caller, config_answering, payload

BALANCE_PATHS = {"sunx": "/sapi/v1/account/balance", "htxfutures": "/v5/account/balance"}


def recording(requests: list[httpx.Request]) -> dict[str, Any]:
    """Return a config that records the requests and gives the documented answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=payload("sunx-documented"))

    return {**KEYS, "options": {"transport": httpx.MockTransport(answer)}}


# -- requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HmacSHA256", "Ed25519"])
@pytest.mark.parametrize("variant", ["sapi/v1", "v5"])
def test_venue_accepts_the_signature(
    call: Caller, sandbox: Sandbox, exchange_id: str, variant: str, method: Any
) -> None:
    """Each exchange reads each path variant with each kind of key, in one request."""
    config = sandbox.config(exchange_id, "indebted", signature_method=method)
    config |= {"number": str, "options": {"pathVariant": variant}}
    balance = call(exchange_id, config, "fetch_balance")
    assert balance["USDT"] == {
        "free": "-2.9969196676", "used": "2.8999998", "total": "-0.0969198676",
        "debt": "0.0050448676",
    }  # fmt: skip
    assert [request.path for request in sandbox.requests] == [f"/{variant}/account/balance"]


def test_request(call: Caller, exchange_id: str) -> None:
    """The request goes to the venue's host and path, with the headers that the user set."""
    sent: list[httpx.Request] = []
    config = {**recording(sent), "headers": {"X-Bot": "mine"}, "userAgent": "my bot"}
    call(exchange_id, config, "fetch_balance", {"extra": "a b"})
    [request] = sent
    host = {"sunx": "api.sunx.io", "htxfutures": "api.hbdm.com"}[exchange_id]
    assert (request.method, request.url.scheme, request.url.host) == ("GET", "https", host)
    assert request.url.path == BALANCE_PATHS[exchange_id]
    assert request.headers["host"] == host
    assert (request.headers["x-bot"], request.headers["user-agent"]) == ("mine", "my bot")
    query = parse_qs(request.url.query.decode())
    assert query["extra"] == ["a b"]
    assert query["AccessKeyId"] == [KEYS["apiKey"]]
    assert query.keys() >= {"Signature", "Timestamp", "SignatureMethod", "SignatureVersion"}


def test_hostname_and_gateway(call: Caller) -> None:
    """``hostname`` replaces the venue's host; a gateway's path is prepended."""
    sent: list[httpx.Request] = []
    call("htxfutures", {**recording(sent), "hostname": "api.hbdm.vn"}, "fetch_balance")
    gateway = {"urls": {"api": {"rest": "https://gateway.example/htx/"}}}
    config = recording(sent) | gateway
    config["options"]["signatureHost"] = "api.hbdm.com"
    call("htxfutures", config, "fetch_balance")
    assert str(sent[0].url).startswith("https://api.hbdm.vn/v5/account/balance?")
    assert str(sent[1].url).startswith("https://gateway.example/htx/v5/account/balance?")


def test_gateway_signs_for_the_venue(call: Caller, sandbox: Sandbox) -> None:
    """With ``signatureHost``, the venue accepts requests sent through another address."""
    config = sandbox.config("sunx") | {"options": {"signatureHost": "api.sunx.io"}}
    assert "USDT" in call("sunx", config, "fetch_balance")["total"]


@pytest.mark.parametrize(
    "params",
    [
        {"type": "swap"},
        {"type": "future"},
        {"subType": "linear"},
        {"marginMode": "cross"},
        {"type": None, "subType": None, "marginMode": None, "free": None},
    ],
)
def test_supported_parameters(call: Caller, params: dict[str, Any]) -> None:
    """Supported values of ccxt's parameters are accepted and not sent."""
    sent: list[httpx.Request] = []
    config = recording(sent)
    config["options"]["free"] = "available"
    call("sunx", config, "fetch_balance", params)
    assert not set(params) & parse_qs(sent[0].url.query.decode()).keys()


@pytest.mark.parametrize(
    ("params", "instead"),
    [
        ({"type": "spot"}, "swap, future"),
        ({"subType": "inverse"}, "linear"),
        ({"marginMode": "isolated"}, "cross"),
        ({"free": "cash"}, "margin, available, withdrawable"),
    ],
)
def test_unsupported_parameters(call: Caller, params: dict[str, Any], instead: str) -> None:
    """Unsupported values are refused; the error lists the supported ones; nothing is sent."""
    sent: list[httpx.Request] = []
    with pytest.raises(NotSupported, match=instead):
        call("sunx", recording(sent), "fetch_balance", params)
    assert not sent


def test_default_type(call: Caller) -> None:
    """An exchange set to spot does not return the futures account."""
    config = config_answering(payload("sunx-documented"))
    config["options"]["defaultType"] = "spot"
    with pytest.raises(NotSupported, match="swap, future"):
        call("sunx", config, "fetch_balance")
    assert call("sunx", config, "fetch_balance", {"type": "swap"})["total"]


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        ({}, "apiKey and secret"),
        ({"apiKey": "key"}, "secret"),
        ({"secret": "s"}, "apiKey"),
        ({"apiKey": "", "secret": "s"}, "apiKey"),
    ],
)
def test_missing_keys(call: Caller, keys: dict[str, str], missing: str) -> None:
    """Without keys, nothing is sent, and the error names the missing ones."""
    sent: list[httpx.Request] = []
    config = {**recording(sent), "apiKey": None, "secret": None, **keys}
    with pytest.raises(AuthenticationError, match=missing):
        call("sunx", config, "fetch_balance")
    assert not sent


# -- ccxt's interface -----------------------------------------------------------------------


def test_is_a_ccxt_exchange() -> None:
    """The classes are subclasses of ccxt's exchanges."""
    assert isinstance(Sunx(), ccxt.Exchange)
    assert isinstance(AsyncSunx(), ccxt.async_support.Exchange)


def test_derived_methods(call: Caller, exchange_id: str) -> None:
    """ccxt's derived methods and camelCase names give parts of the same balance."""
    config = config_answering(payload("htx-v5-documented"))
    whole = call(exchange_id, config, "fetchBalance")
    for view in ("free", "used", "total"):
        assert call(exchange_id, config, f"fetch_{view}_balance") == whole[view]
        assert call(exchange_id, config, f"fetch{view.capitalize()}Balance") == whole[view]
        assert call(exchange_id, config, "fetch_partial_balance", view) == whole[view]
    summary = call(exchange_id, config, "fetchAccountSummary")
    assert summary == call(exchange_id, config, "fetch_account_summary")
    assert summary == CLASSES[exchange_id, False]().parse_account_summary(whole["info"])


@pytest.mark.parametrize("kind", [ccxt, ccxt.async_support])
def test_has_all_names_of_ccxt(kind: Any) -> None:
    """Every exchange, the first of its class and later ones, has every public name of ccxt's."""
    names = {name for name in dir(kind.Exchange()) if not name.startswith("_")}
    for cls in (Sunx, HtxFutures) if kind is ccxt else (AsyncSunx, AsyncHtxFutures):
        for exchange in (cls(KEYS), cls(KEYS)):
            assert names <= set(dir(exchange))


def test_camel_case_names_of_a_subclass() -> None:
    """A user's subclass gets camelCase names for its methods and settings, as with ccxt."""

    class Own(Sunx):
        own_setting = "of the class"

        def fetch_ticker(self, symbol: str) -> str:
            return f"{self.id} {symbol}"

        @staticmethod
        def own_helper() -> str:
            return "helped"

    first: Any = Own({**KEYS, "user_agent": "first"})
    second: Any = Own(KEYS)
    assert (first.userAgent, second.userAgent) == ("first", Sunx(KEYS).userAgent)
    for exchange in (first, second):
        assert exchange.ownSetting == "of the class"
        assert exchange.fetchTicker("BTC") == "sunx BTC"
        assert exchange.ownHelper() == "helped"


def test_implicit_methods(call: Caller, sandbox: Sandbox, exchange_id: str) -> None:
    """Every endpoint in ``describe()`` has implicit methods that return its answer."""
    api = CLASSES[exchange_id, False]().describe()["api"]
    names = [
        (access, "_".join([access, "get", *path.replace("/", " ").split()]))
        for access in api
        for path in api[access]["get"]
    ]
    assert len(names) == {"sunx": 3, "htxfutures": 6}[exchange_id]
    for _, name in names:
        answer = call(exchange_id, sandbox.config(exchange_id), name)
        assert answer.get("code", 200) == 200
        words = name.split("_")
        camel = words[0] + "".join(word.capitalize() for word in words[1:])
        if camel.endswith("Balance"):
            repeated = call(exchange_id, sandbox.config(exchange_id), camel)
            assert repeated["data"] == answer["data"]


def test_sign_and_fetch(call: Caller, sandbox: Sandbox) -> None:
    """``fetch()`` sends what ``sign()`` returns, as in every ccxt exchange."""
    signed = Sunx(sandbox.config("sunx")).sign("sapi/v1/account/balance", "private", "GET", {})
    answer = call("sunx", {}, "fetch", signed["url"], signed["method"], signed["headers"])
    assert answer["data"]["state"] == "normal"


def test_describe(exchange_id: str) -> None:
    """``describe()`` lists fetchBalance as the only supported method."""
    exchange = CLASSES[exchange_id, False]()
    described = exchange.describe()
    works = {name for name, works in described["has"].items() if works}
    assert works - {"publicAPI"} == {"privateAPI", "swap", "future", "fetchBalance"}
    assert all(value in (True, False) for value in described["has"].values())
    assert exchange.feature_value_by_type("swap", "linear") is not None
    assert exchange.feature_value_by_type("spot", None) is None
    assert described["rateLimit"] == pytest.approx(3000 / 72)
    codes = {code for rule in ERROR_RULES for code in rule.codes}
    assert described["exceptions"]["exact"].keys() == codes


def test_unsupported_methods(call: Caller, exchange_id: str) -> None:
    """Every method that ``has`` does not list raises NotSupported, with any arguments."""
    exchange = CLASSES[exchange_id, call.asynchronous](config_answering(b"{}"))
    refused = 0
    for name, works in [*exchange.has.items(), ("fetchFees", False)]:
        if not works and callable(getattr(exchange, name, None)):
            with pytest.raises(NotSupported, match=r"only balances are served|use Async"):
                call(exchange_id, config_answering(b"{}"), name, "anything")
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, pickle.dumps])
def test_exchanges_are_not_copied(call: Caller, copier: Callable[[Any], Any]) -> None:
    """An exchange cannot be pickled or copied; the error says what to do instead."""
    with pytest.raises(TypeError, match="make another one") as caught:
        call.using("sunx", KEYS, copier)
    assert KEYS["secret"] not in str(caught.value)


def test_transport_of_the_other_kind(call: Caller) -> None:
    """A synchronous transport is refused by an asynchronous class, and vice versa."""
    kind: Any = httpx.HTTPTransport if call.asynchronous else httpx.AsyncHTTPTransport
    with pytest.raises(NotSupported, match="BaseTransport"):
        call("sunx", {**KEYS, "options": {"transport": kind()}}, "fetch_balance")


def test_options_that_are_none(call: Caller) -> None:
    """An option that is None counts as not set."""
    config = config_answering(payload("sunx-documented"))
    config["options"] |= dict.fromkeys(
        ("pathVariant", "free", "rateLimitStorage", "maxResponseBytes", "maxRetriesOnFailure")
    )
    assert call("sunx", config, "fetch_total_balance")


def test_load_markets_sends_nothing(call: Caller) -> None:
    """``load_markets()`` sends nothing; markets from the configuration are kept."""
    sent: list[httpx.Request] = []
    assert call("sunx", recording(sent), "load_markets") == {}
    market = {
        "id": "BTC-USDT", "symbol": "BTC/USDT:USDT", "base": "BTC", "quote": "USDT",
        "settle": "USDT", "type": "swap", "spot": False, "swap": True, "linear": True,
        "contract": True, "active": True, "precision": {}, "limits": {},
    }  # fmt: skip
    given = {**recording(sent), "markets": {"BTC/USDT:USDT": market}}
    assert call("sunx", given, "load_markets")["BTC/USDT:USDT"]["id"] == "BTC-USDT"
    assert not sent


def test_last_answer(call: Caller) -> None:
    """The last answer is kept as in ccxt; ``last_request_url`` has no key or signature."""

    def use(exchange: Any) -> Any:
        async def run() -> tuple[Any, ...]:
            await exchange.fetch_balance()
            return seen()

        def seen() -> tuple[Any, ...]:
            return (
                exchange.last_http_response,
                exchange.last_response_headers["x-trace"],
                exchange.last_request_url,
            )

        if call.asynchronous:
            return run()
        exchange.fetch_balance()
        return seen()

    config = config_answering(payload("sunx-documented"), {"X-Trace": "7"})
    text, trace, url = call.using("sunx", config, use)
    assert json.loads(text)["code"] == 200
    assert trace == "7"
    assert url == "https://api.sunx.io/sapi/v1/account/balance"


def test_common_currencies() -> None:
    """Currency ids go through ccxt's table of codes, which a user can extend."""
    config = {
        **config_answering(payload("sunx-documented")),
        "commonCurrencies": {"USDT": "TETHER"},
    }
    with Sunx(config) as exchange:
        assert exchange.fetch_total_balance().keys() == {"TETHER"}


# -- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("password", "login", "token", "twofa", "walletAddress", "accountId", "passphrase"),
        *("proxy", "proxyUrl", "proxies", "aiohttp_proxy", "httpProxyCallback", "wsSocksProxy"),
        *("session", "returnResponseHeaders", "sandbox", "testnet", "tokenBucket"),
    ],
)
def test_unsupported_settings(call: Caller, key: str) -> None:
    """A ccxt setting that is not supported is refused when the exchange is made."""
    with pytest.raises(NotSupported, match=f"'{key}'") as caught:
        call("sunx", {key: "made-up-value"}, "fetch_balance")
    assert "made-up-value" not in str(caught.value)
    config = {**config_answering(payload("sunx-documented")), key: None}
    assert call("sunx", config, "fetch_total_balance")


def test_certificate_verification_stays_on() -> None:
    """Turning off certificate verification is refused."""
    for key in ("verify", "validateServerSsl"):
        with pytest.raises(NotSupported, match="always verified"):
            Sunx({key: False})
        Sunx({key: True})


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"options": {"pathVariant": "v6"}}, NotSupported, "sapi/v1, v5"),
        ({"options": {"free": "cash"}}, NotSupported, "margin, available"),
        ({"timeout": 0}, BadRequest, "timeout.*> 0"),
        ({"timeout": "soon"}, BadRequest, "timeout.*got `str`"),
        ({"timeout": float("inf")}, BadRequest, "timeout"),
        ({"secret": 1}, BadRequest, "secret.*got `int`"),
        ({"apiKey": b"x"}, BadRequest, "apiKey.*got `bytes`"),
        ({"options": "x"}, BadRequest, "options"),
        ({"headers": "x"}, BadRequest, "headers"),
        ({"options": {"maxResponseBytes": "x"}}, BadRequest, "maxResponseBytes"),
        ({"number": int}, BadRequest, "str or decimal"),
        ({"cafile": "/nope"}, BadRequest, "No such file"),
        ({"cafile": "/etc/hostname"}, BadRequest, "cannot be used"),
        ({"httpProxy": "nonsense"}, BadRequest, "http://host:port"),
        ({"urls": "x"}, BadRequest, "rest"),
        ({"urls": {"api": "https://x"}}, BadRequest, "rest"),
        ({"urls": {"api": {"rest": "http://api.sunx.io"}}}, NotSupported, "not encrypted"),
        ({"urls": {"api": {"rest": "api.sunx.io"}}}, NotSupported, "https://"),
        ({"urls": {"api": {"rest": "https://"}}}, NotSupported, "needs a host"),
        ({"urls": {"api": {"rest": "https://host:99999"}}}, NotSupported, "needs a host"),
        ({"urls": {"api": {"rest": "https://me:made-up@x"}}}, NotSupported, "not have a user name"),
        ({"urls": {"api": {"contract": "https://x"}}}, BadRequest, "contract"),
        ({"headers": {"X-Bad": "a\r\nb"}}, BadRequest, "X-Bad"),
        ({"httpProxy": "http://a", "socksProxy": "socks5://b"}, NotSupported, "use one of"),
        ({"exceptions": {"exact": {}}}, NotSupported, "exceptions"),
        ({"headers": {"Host": "x"}}, NotSupported, "Host"),
    ],
)
def test_bad_settings(config: dict[str, Any], error: type[BaseError], words: str) -> None:
    """An invalid setting is refused when the exchange is made; the error says what is valid."""
    with pytest.raises(error, match=words):
        Sunx(config)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://x.example"]
)
def test_accepted_addresses(address: str) -> None:
    """Plain HTTP is accepted for loopback addresses only, HTTPS for any."""
    Sunx({"urls": {"api": {"rest": address}}})


def test_address_changed_later_is_checked(call: Caller) -> None:
    """An address set later is checked before anything is sent."""

    def use(exchange: Any) -> Any:
        exchange.urls["api"]["rest"] = "http://api.sunx.io"
        return exchange.fetch_balance()

    with pytest.raises(NotSupported, match="not encrypted"):
        call.using("sunx", KEYS, use)


def test_refused_setting_shows_no_secret() -> None:
    """The traceback of a refused configuration has no local variable with a secret."""
    secret = "made-up-secret-to-find"
    with pytest.raises(NotSupported) as caught:
        Sunx({"apiKey": "made-up-key", "secret": secret, "password": "made-up-password"})
    assert caught.value.__context__ is None
    # The first entry is this test's own frame, which holds the secret.
    for entry in caught.traceback[1:]:
        assert secret not in repr(entry.frame.f_locals)


def test_keys_may_be_set_later(call: Caller, sandbox: Sandbox) -> None:
    """Keys set after the exchange was made are used."""

    def use(exchange: Any) -> Any:
        other = sandbox.config("sunx", "small")
        exchange.apiKey, exchange.secret = other["apiKey"], other["secret"]
        return exchange.fetch_total_balance()

    assert call.using("sunx", sandbox.config("sunx"), use) == {"USDT": 0.004015101942876636}


# -- opening and closing --------------------------------------------------------------------


def test_use_after_close(call: Caller) -> None:
    """A call after ``close()`` says that the exchange is closed; closing twice is fine."""

    def use(exchange: Any) -> Any:
        if inspect.iscoroutinefunction(exchange.close):

            async def run() -> Any:
                await exchange.close()
                await exchange.close()
                return await exchange.fetch_balance()

            return run()
        exchange.close()
        exchange.close()
        return exchange.fetch_balance()

    with pytest.raises(ExchangeClosedByUser, match="closed"):
        call.using("sunx", config_answering(payload("sunx-documented")), use)


def test_unused_async_exchange_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """An asynchronous exchange that is unused or closed twice causes no warning."""

    async def run() -> None:
        AsyncSunx(KEYS)
        used = AsyncSunx(KEYS)
        await used.close()
        await used.close()

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        asyncio.run(run())
        gc.collect()
    assert not caplog.records


def test_given_transport_stays_open(call: Caller, sandbox: Sandbox) -> None:
    """``close()`` does not close a transport from the user, so exchanges can share it."""
    closed: list[bool] = []

    class Transport(httpx.MockTransport):
        def close(self) -> None:
            closed.append(True)

        async def aclose(self) -> None:
            closed.append(True)

    def answer(request: httpx.Request) -> httpx.Response:  # noqa: ARG001
        return httpx.Response(200, content=payload("sunx-documented"))

    config = {**KEYS, "options": {"transport": Transport(answer)}}
    call("sunx", config, "fetch_balance")
    call("sunx", config, "fetch_balance")
    assert not closed
    assert not sandbox.requests


def test_two_event_loops(sandbox: Sandbox) -> None:
    """A closed exchange can be opened again, also in another event loop."""
    exchange = AsyncSunx(sandbox.config("sunx"))

    async def read() -> Any:
        async with exchange:
            return await exchange.fetch_total_balance()

    assert asyncio.run(read()) == asyncio.run(read())


# -- parity ---------------------------------------------------------------------------------

PUBLIC_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("fetch_balance", ()),
    ("fetch_balance", ({"free": "withdrawable"},)),
    ("fetch_balance", ({"type": "spot"},)),
    ("fetch_balance", ({"bad": []},)),
    ("fetch_account_summary", ()),
    ("fetch_free_balance", ()),
    ("fetch_used_balance", ()),
    ("fetch_total_balance", ()),
    ("fetch_partial_balance", ("used",)),
    ("fetch_markets", ()),
    ("load_markets", ()),
    ("fetch_currencies", ()),
    ("fetch_ticker", ("BTC/USDT:USDT",)),
    ("create_order", ("BTC/USDT:USDT", "limit", "buy", 1, 1)),
    ("private_get_sapi_v1_account_balance", ()),
    ("private_get_v5_account_balance", ()),
    ("request", ("v5/account/balance", "private", "GET", {})),
    ("request", ("v5/account/balance", "private", "POST", {})),
    ("fetch", ("http://api.sunx.io/", "GET")),
    ("fetch", ("https://api.sunx.io/", "POST")),
    ("sign", ("v5/account/balance", "private", "POST", {})),
    ("parse_account_summary", ({"data": None},)),
    ("check_required_credentials", ()),
]
ANSWERS = [payload("htx-v5-documented"), b'{"code":1003,"message":"no"}', b"{}", b"<html>"]


def outcome(
    call: Caller, exchange_id: str, answer: bytes, method: str, arguments: tuple[Any, ...]
) -> Any:
    """Return the result of a call, or the class and text of its exception."""
    try:
        return call(exchange_id, config_answering(answer), method, *copy.deepcopy(arguments))
    except BaseError as error:
        return type(error), str(error)


@pytest.mark.parametrize("answer", ANSWERS, ids=["success", "refusal", "no code", "html"])
@pytest.mark.parametrize(("method", "arguments"), PUBLIC_CALLS)
def test_parity(exchange_id: str, method: str, arguments: tuple[Any, ...], answer: bytes) -> None:
    """Every public call has the same result or exception in both classes."""
    wanted = (exchange_id, answer, method, arguments)
    assert outcome(Caller(False), *wanted) == outcome(Caller(True), *wanted)


def test_parity_covers_every_public_call() -> None:
    """The parity test covers every public method of both classes."""
    own = {
        name
        for kind in (HtxFutures, CLASSES["htxfutures", True])
        for base in kind.__mro__
        if base.__module__.startswith("sunx_adapter")
        for name, value in vars(base).items()
        if inspect.isfunction(value)
        and value.__module__ == base.__module__
        and not name.startswith("_")
        and "_" in name
    }
    # Used by other calls in the list, or dependent on the time or another exchange.
    inside = {"fetch2", "load_time_difference", "enable_demo_trading"}
    inside |= {"use_connections_of", "before_write"}
    # Only in the asynchronous classes.
    inside |= {"watch_balance", "watch_balances", "stream_status"}
    assert own - inside <= {method for method, _ in PUBLIC_CALLS}
