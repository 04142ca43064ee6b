import asyncio
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest
from ccxt.base.errors import NotSupported

from sunx_adapter import (
    AsyncHtxFutures,
    AsyncSunx,
    ExchangeHost,
    HtxFutures,
    Sandbox,
    Sunx,
    register_with_ccxt,
)
from tests.conftest import Caller

MODULES: dict[str, ModuleType] = {
    module.__name__: module for module in (ccxt, ccxt.async_support, ccxt.pro)
}
CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "ccxt": (Sunx, HtxFutures),
    "ccxt.async_support": (AsyncSunx, AsyncHtxFutures),
    "ccxt.pro": (AsyncSunx, AsyncHtxFutures),
}
IDS = ("sunx", "htxfutures")
HOSTS = Path(__file__).parent / "hosts"

Result = TypeVar("Result")


FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def in_a_fresh_interpreter(function: Callable[..., Result], *arguments: object) -> Result:
    """Call the function in a process of its own, because ccxt's modules are global.

    It is the fork of a process that has imported this module, and done nothing else.
    """
    with ProcessPoolExecutor(1, mp_context=FORKS) as process:
        return process.submit(function, *arguments).result()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a bot finds in one of ccxt's modules."""

    classes: tuple[type[Any] | None, ...]
    listed: int
    all_listed: int | None


def snapshots() -> dict[str, Snapshot]:
    """Return our ids' classes and the lengths of the lists, by module."""
    return {
        name: Snapshot(
            tuple(getattr(module, exchange_id, None) for exchange_id in IDS),
            len(module.exchanges),
            len(module.__all__) if hasattr(module, "__all__") else None,
        )
        for name, module in MODULES.items()
    }


# -- registration ---------------------------------------------------------------------------


def register_twice() -> tuple[object, ...]:
    before = snapshots()
    held = [module.exchanges for module in MODULES.values()]
    ids = register_with_ccxt()
    once = snapshots()
    listed = [exchanges[-2:] for exchanges in held]
    again = register_with_ccxt()
    starred: dict[str, Any] = {}
    exec("from ccxt import *", starred)  # noqa: S102 - as in a bot's module
    return before, ids, once, listed, again, snapshots(), starred["sunx"]


def test_available_and_listed_once() -> None:
    """Each ccxt module has and lists both exchanges once, also in a list taken earlier.

    A second call changes nothing.
    """
    before, ids, once, listed, again, twice, starred = in_a_fresh_interpreter(register_twice)
    assert isinstance(before, dict)
    assert ids == again == IDS
    assert listed == [list(IDS)] * 3
    assert once == {
        name: Snapshot(
            CLASSES[name], seen.listed + 2, None if seen.all_listed is None else seen.all_listed + 2
        )
        for name, seen in before.items()
    }
    assert twice == once
    assert starred is Sunx


def register_from_threads() -> list[int]:
    barrier = threading.Barrier(16)

    def register() -> None:
        barrier.wait()
        register_with_ccxt()

    threads = [threading.Thread(target=register) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [
        module.exchanges.count(exchange_id) for module in MODULES.values() for exchange_id in IDS
    ]


def test_threads_may_register_at_once() -> None:
    """If many threads register concurrently, each exchange is listed once."""
    assert in_a_fresh_interpreter(register_from_threads) == [1] * 6


class Foreign:
    """A class for an exchange of ccxt's own."""


def register_where_taken(name: str, exchange_id: str, listed_only: bool) -> tuple[Any, ...]:
    module = MODULES[name]
    module.exchanges.append(exchange_id)
    if not listed_only:
        setattr(module, exchange_id, Foreign)
    before = snapshots()
    try:
        register_with_ccxt()
        refusal = ""
    except NotSupported as error:
        refusal = str(error)
    refused = snapshots()
    register_with_ccxt(replace=True)
    replaced = snapshots()
    register_with_ccxt()
    counts = [module.exchanges.count(known) for module in MODULES.values() for known in IDS]
    return before, refusal, refused, replaced, snapshots(), counts


@pytest.mark.parametrize(
    ("name", "exchange_id", "listed_only"),
    [
        ("ccxt", "sunx", False),
        ("ccxt.async_support", "htxfutures", False),
        ("ccxt.pro", "sunx", True),
    ],
)
def test_does_not_replace_ccxts_own(name: str, exchange_id: str, listed_only: bool) -> None:
    """ccxt's own exchange is replaced only on request; otherwise nothing changes."""
    before, refusal, refused, replaced, later, counts = in_a_fresh_interpreter(
        register_where_taken, name, exchange_id, listed_only
    )
    assert f"{name}.{exchange_id}" in refusal
    assert "register_with_ccxt(replace=True)" in refusal
    assert refused == before
    assert {name: seen.classes for name, seen in replaced.items()} == CLASSES
    assert later == replaced
    assert counts == [1] * 6


def register_without_pro() -> tuple[Any, ...]:
    # As if ccxt had no ``pro``.
    for name in [name for name in sys.modules if name.startswith(("ccxt", "sunx_adapter"))]:
        del sys.modules[name]
    sys.modules["ccxt.pro"] = None  # type: ignore[assignment]
    import ccxt.async_support as ccxt_async  # noqa: PLC0415

    import sunx_adapter  # noqa: PLC0415

    ids = sunx_adapter.register_with_ccxt()
    return ids, ccxt_async.sunx.__name__, hasattr(sys.modules["ccxt"], "pro")


def test_ccxt_without_pro() -> None:
    """If ccxt has no ``pro``, the exchanges are registered in the other two modules."""
    assert in_a_fresh_interpreter(register_without_pro) == (IDS, "AsyncSunx", False)


def make_by_host() -> tuple[bool, list[str]]:
    register_with_ccxt()
    host = ExchangeHost()
    with closing(host.create("sunx")) as exchange:
        return isinstance(exchange, Sunx), [str(problem) for problem in host.problems]


def test_registration_is_no_second_offer() -> None:
    """A host does not take registered exchanges as a second offer."""
    assert in_a_fresh_interpreter(make_by_host) == (True, [])


# -- a bot that knows only ccxt -------------------------------------------------------------


def run_bot(keys: dict[str, Any]) -> dict[str, Any]:
    """Do what freqtrade does from its start to its wallets, by ccxt's names only."""
    register_with_ccxt()
    name = "sunx"
    assert name in ccxt.exchanges
    # Freqtrade reads ``has`` before it has keys.
    can = getattr(ccxt.pro, name)().has
    config = {
        "apiKey": keys["apiKey"],
        "secret": keys["secret"],
        **dict.fromkeys(("password", "uid", "accountId", "walletAddress", "privateKey")),
        "urls": keys["urls"],
        "options": {"defaultType": "swap"},
        "enableRateLimit": True,
        "rateLimit": 50,
    }
    loop = asyncio.new_event_loop()
    try:
        api = getattr(ccxt, name)(dict(config))
        api_async = getattr(ccxt.pro if name in ccxt.pro.exchanges else ccxt.async_support, name)(
            dict(config)
        )
        markets = loop.run_until_complete(api_async.load_markets(reload=True, params={}))
        # Both share one dictionary of options from now on.
        api.options = api_async.options
        balances = api.fetch_balance({})
        for key in ("info", "free", "total", "used"):
            balances.pop(key, None)
        wallets = {
            currency: (balance.get("free", 0), balance.get("used", 0), balance.get("total", 0))
            for currency, balance in balances.items()
            if isinstance(balance, dict)
        }
        loop.run_until_complete(api_async.close())
        api.close()
    finally:
        loop.close()
    return {
        "can": [method for method in ("fetchBalance", "createOrder", "fetchTicker") if can[method]],
        "name": api.name,
        "markets": markets,
        "timeframes": api.timeframes,
        "precisionMode": api.precisionMode,
        "wallets": wallets,
    }


def test_bot_that_knows_only_ccxt(sandbox: Sandbox) -> None:
    """A bot that uses ccxt like freqtrade gets its wallets with one request."""
    seen = in_a_fresh_interpreter(run_bot, sandbox.config("sunx", "main"))
    assert seen == {
        "can": ["fetchBalance"],
        "name": "SunX",
        "markets": {},
        "timeframes": None,
        "precisionMode": ccxt.TICK_SIZE,
        "wallets": {
            "USDT": (9455.900075113264, 3210.75, 12666.650075113264),
            "BTC": (0.40000001, 0.0, 0.40000001),
            "ETH": (4.415, 0.75, 5.165),
        },
    }
    assert len(sandbox.requests) == 1


PROXIES = (
    *("proxy", "proxyUrl", "proxy_url", "proxyUrlCallback", "proxies", "aiohttp_proxy"),
    *("httpProxy", "http_proxy", "httpProxyCallback", "httpsProxy", "https_proxy"),
    *("socksProxy", "socks_proxy", "wsProxy", "ws_proxy", "wssProxy", "wsSocksProxy"),
)
SETTINGS: list[dict[str, Any]] = [
    dict.fromkeys(
        ("password", "uid", "accountId", "walletAddress", "privateKey", "token", "login")
    ),
    {"password": "", "uid": "", "walletAddress": "", "privateKey": ""},
    dict.fromkeys(PROXIES),
    {"headers": {"X-Bot": "mine"}, "userAgent": "my bot/1.0"},
    {"headers": {}},
    {"options": {"defaultType": "swap"}},
    {"options": {"defaultType": "future", "defaultSubType": "linear", "recvWindow": 10_000}},
    {"options": {}},
    {"enableRateLimit": True, "rateLimit": 200},
    {"enableRateLimit": False, "rateLimit": 1, "timeout": 30_000},
    {"verbose": False, "aiohttp_trust_env": True, "requests_trust_env": True},
    # Every attribute of ccxt's class.
    dict.fromkeys(
        name
        for name, value in vars(ccxt.Exchange).items()
        if not name.startswith("_") and not callable(value) and not isinstance(value, property)
    ),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(list(settings)[:3]))
def test_settings_of_bots(
    call: Caller, sandbox: Sandbox, exchange_id: str, settings: dict[str, Any]
) -> None:
    """Configurations as bots build them are accepted, and the balance is read."""
    config = settings | sandbox.config(exchange_id, "small")
    assert call(exchange_id, config, "fetch_balance")["total"] == {"USDT": 0.004015101942876636}


@pytest.mark.parametrize("key", ["httpProxy", "httpsProxy"])
def test_proxies_are_accepted(call: Caller, exchange_id: str, key: str) -> None:
    """An exchange behind a proxy can be made, and uses the proxy that ccxt would use."""
    config = {key: "http://127.0.0.1:3128"}
    proxies = call.using(exchange_id, config, lambda exchange: exchange.check_proxy_settings())
    assert [proxy for proxy in proxies if proxy] == ["http://127.0.0.1:3128"]


def test_proxies_as_freqtrade_documents_them(call: Caller, exchange_id: str) -> None:
    """The proxy settings from freqtrade's manual, for REST and streams, are accepted."""
    config = {"httpsProxy": "http://127.0.0.1:3128", "wsProxy": "http://127.0.0.1:3128"}
    assert call.using(exchange_id, config, lambda exchange: exchange.id) == exchange_id


def test_configuration_for_freqtrade(call: Caller, sandbox: Sandbox, exchange_id: str) -> None:
    """The example configuration for freqtrade gives the exchange its market and timeframe."""
    watch = json.loads((HOSTS / "freqtrade_bot" / "watch.json").read_text("utf-8"))
    config = watch["exchange"]["ccxt_config"] | sandbox.config(exchange_id, "small")
    assert call(exchange_id, config, "load_markets").keys() == {"BTC/USDT"}
    assert call.using(exchange_id, config, lambda exchange: exchange.timeframes) == {"1h": "1h"}
    assert call(exchange_id, config, "fetch_total_balance") == {"USDT": 0.004015101942876636}


def test_event_loop_of_the_bot(sandbox: Sandbox) -> None:
    """An exchange may be made outside the event loop that a bot passes to it."""
    loop = asyncio.new_event_loop()
    try:
        exchange = AsyncSunx({**sandbox.config("sunx", "small"), "asyncio_loop": loop})
        balance = loop.run_until_complete(exchange.fetch_balance())
        loop.run_until_complete(exchange.close())
    finally:
        loop.close()
    assert balance["USDT"]["used"] == 0


def test_verbose_bot(
    call: Caller, sandbox: Sandbox, exchange_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``verbose``, every request and answer is printed without the keys."""
    config = sandbox.config(exchange_id, "small")
    call(exchange_id, config | {"verbose": True}, "fetch_balance")
    shown = capsys.readouterr().out
    assert exchange_id in shown
    assert "withdraw_available" in shown
    assert config["apiKey"] not in shown
    assert config["secret"] not in shown


def test_modes_that_bots_turn_off(call: Caller, sandbox: Sandbox, exchange_id: str) -> None:
    """Turning off ccxt's sandbox and demo modes, as bots do, changes nothing."""

    def use(exchange: Any) -> Any:
        exchange.set_sandbox_mode(False)
        exchange.enable_demo_trading(False)
        return exchange.fetch_total_balance()

    config = sandbox.config(exchange_id, "small")
    assert call.using(exchange_id, config, use) == {"USDT": 0.004015101942876636}
