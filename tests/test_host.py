import asyncio
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import ccxt
import pytest
from ccxt.base.errors import AuthenticationError

from sunx_adapter import AsyncSunx, HtxFutures, Sandbox, Sunx, plugin
from sunx_adapter.hookspecs import ExchangeOffer, hookimpl
from sunx_adapter.host import (
    ConflictingOffersError,
    ExchangeHost,
    HostError,
    UnknownExchangeError,
)
from sunx_adapter.sandbox import SandboxAccount
from tests.processes import run_python


def plugin_with(*offers: object) -> Any:
    """Return a plugin that makes these offers."""

    class Plugin:
        @hookimpl
        def exchange_offers(self) -> list[object]:
            return list(offers)

    return Plugin()


def offer(exchange_id: str, path: str = "ccxt:kraken") -> ExchangeOffer:
    return ExchangeOffer(exchange_id, exchange_id.upper(), path, path)


@pytest.fixture
def host() -> ExchangeHost:
    """A host with this package's plugin only, whatever else is installed."""
    made = ExchangeHost(discover=False)
    made.register(plugin, "sunx-adapter")
    return made


def test_discovered_by_entry_point() -> None:
    """An installed plugin is found by its entry point."""
    found = ExchangeHost().offer("sunx")
    assert (found.plugin, found.offer.name) == ("sunx-adapter", "SunX")


def test_makes_exchanges(host: ExchangeHost) -> None:
    """``sunx`` and ``htxfutures`` come from this package, other ids from ccxt, in both kinds."""
    config = {"apiKey": "made-up"}
    assert isinstance(host.create("sunx", config), Sunx)
    assert isinstance(host.create("htxfutures"), HtxFutures)
    assert isinstance(host.create("sunx", asynchronous=True), AsyncSunx)
    assert isinstance(host.create("kraken", config), ccxt.kraken)
    assert host.create("sunx", config).apiKey == "made-up"


def test_offers_every_ccxt_exchange(host: ExchangeHost) -> None:
    """The built-in plugin offers every ccxt exchange."""
    ids = {found.offer.id for found in host.offers() if found.plugin == "ccxt"}
    assert ids == set(ccxt.exchanges)


def test_capabilities_of_offers(host: ExchangeHost) -> None:
    """The asynchronous class has each capability in an offer's ``has``."""
    for exchange_id in ("sunx", "htxfutures"):
        claimed = {name for name, works in host.offer(exchange_id).offer.has.items() if works}
        has = host.create(exchange_id, asynchronous=True).has
        assert claimed == {"fetchBalance", "watchBalance"}
        assert all(has[name] for name in claimed)


def test_unknown_id(host: ExchangeHost) -> None:
    """An unknown id is an error that suggests a similar one."""
    with pytest.raises(UnknownExchangeError, match="did you mean sunx"):
        host.create("sunxx")


def test_two_offers_of_one_id(host: ExchangeHost) -> None:
    """Two offers of one id are an error that names both plugins; other ids still work."""
    host.register(plugin_with(offer("sunx"), offer("other")), "intruder")
    with pytest.raises(ConflictingOffersError, match="'intruder' and 'sunx-adapter'"):
        host.create("sunx")
    assert host.create("htxfutures").id == "htxfutures"
    assert host.create("other").id == "kraken"


def test_plugin_may_not_replace_ccxt_exchanges(host: ExchangeHost) -> None:
    """An id of ccxt's is not silently replaced either."""
    host.register(plugin_with(offer("binance")), "intruder")
    with pytest.raises(ConflictingOffersError, match="'ccxt' and 'intruder'"):
        host.create("binance")


def test_preferred_plugin() -> None:
    """The user can choose the plugin for an id."""
    host = ExchangeHost(discover=False, prefer={"sunx": "mine"})
    host.register(plugin, "sunx-adapter")
    host.register(plugin_with(offer("sunx")), "mine")
    assert host.create("sunx").id == "kraken"


class FailingPlugin:
    """A plugin whose hook raises an exception."""

    @hookimpl
    def exchange_offers(self) -> None:  # noqa: D102
        raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (FailingPlugin(), "RuntimeError: out of order"),
        (plugin_with("sunx"), "instead of an ExchangeOffer"),
        (SimpleNamespace(exchange_offers=hookimpl(lambda unknown: unknown)), "unknown"),
    ],
)
def test_broken_plugin(host: ExchangeHost, broken: object, reason: str) -> None:
    """A failing plugin is reported by name, and the others still work."""
    host.register(broken, "broken")
    assert host.create("sunx").id == "sunx"
    [problem] = host.problems
    assert problem.plugin == "broken"
    assert reason in str(problem)


@pytest.mark.parametrize("path", ["no_such_module:Class", "ccxt:NoSuchClass", "ccxt", ""])
def test_class_that_cannot_be_loaded(host: ExchangeHost, path: str) -> None:
    """An offer whose class cannot be loaded is an error with plugin and import string."""
    host.register(plugin_with(offer("odd", path)), "hollow")
    with pytest.raises(HostError, match="'hollow' offers 'odd'"):
        host.create("odd")


def test_several_accounts_at_once(host: ExchangeHost, sandbox: Sandbox) -> None:
    """Many accounts are read concurrently; each gives its balance or its exception."""
    good = sandbox.config("sunx", "small")
    balances = asyncio.run(
        host.fetch_balances(
            {
                "good": ("sunx", {**good, "number": str}),
                "other": ("htxfutures", sandbox.config("htxfutures", "empty")),
                "refused": ("sunx", {**good, "secret": "made-up wrong one"}),
                "unknown": ("sunxx", {}),
            }
        )
    )
    assert list(balances) == ["good", "other", "refused", "unknown"]
    good_balance, empty = balances["good"], balances["other"]
    assert isinstance(good_balance, dict)
    assert isinstance(empty, dict)
    assert good_balance["free"] == {"USDT": "0.004015101942876636"}
    assert empty["total"] == {}
    assert isinstance(balances["refused"], AuthenticationError)
    assert isinstance(balances["unknown"], UnknownExchangeError)


HEAVY = ("ccxt", "httpx", "httpcore", "aiohttp", "msgspec", "rich", "typer", "cryptography")


@pytest.mark.parametrize(
    "code",
    [
        "import sunx_adapter, sunx_adapter.plugin",
        "from sunx_adapter.host import ExchangeHost; ExchangeHost().offers()",
    ],
)
def test_discovery_imports_nothing_heavy(code: str) -> None:
    """Importing the package and listing all offers imports nothing heavy."""
    check = f"{code}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_accounts_of_one_venue_share_connections(host: ExchangeHost, sandbox: Sandbox) -> None:
    """Exchanges can share connections, and closing one keeps the others working."""
    sunx, other = (AsyncSunx(sandbox.config("sunx", name)) for name in ("main", "small"))

    async def run() -> None:
        other.use_connections_of(sunx)
        try:
            await sunx.fetch_balance()
            await other.close()
            # Closing the exchange that borrows connections does not close them.
            assert (await sunx.fetch_balance())["total"]
        finally:
            await sunx.close()

    asyncio.run(run())
    accounts = {str(number): ("sunx", sandbox.config("sunx")) for number in range(10)}
    balances = asyncio.run(host.fetch_balances(accounts))
    assert all(isinstance(balance, dict) for balance in balances.values())


FEW_DESCRIPTORS = """
import asyncio, json, resource, sys
from sunx_adapter import ExchangeHost

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
url, count = sys.argv[1], int(sys.argv[2])
config = {"secret": "made-up", "urls": {"api": {"rest": url}}}
accounts = {str(n): ("sunx", {**config, "apiKey": f"made-up-{n}"}) for n in range(count)}
turns = 0

async def main():
    global turns
    reading = asyncio.ensure_future(ExchangeHost().fetch_balances(accounts))
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    return reading.result()

balances = asyncio.run(main())
failed = [str(balance) for balance in balances.values() if not isinstance(balance, dict)]
print(json.dumps([len(balances), failed, turns]))
"""


def test_more_accounts_than_descriptors() -> None:
    """More accounts than file descriptors are all read, while other tasks keep running."""
    count = 400
    accounts = [SandboxAccount(str(n), str(n), f"made-up-{n}", "made-up") for n in range(count)]
    with Sandbox(accounts) as venue:
        done = run_python("-c", FEW_DESCRIPTORS, venue.url, str(count))
    assert done.returncode == 0, done.stderr
    read, failed, turns = json.loads(done.stdout)
    assert (read, failed) == (count, [])
    # Other tasks run after each exchange is made.
    assert turns > count


def test_exchanges_are_kept_between_calls(host: ExchangeHost, sandbox: Sandbox) -> None:
    """Exchanges passed in stay open, so that the next call reuses their connections."""

    async def run() -> None:
        kept = host.create("sunx", sandbox.config("sunx"), asynchronous=True)
        try:
            for _ in range(2):
                [balance] = (await host.fetch_balances({"main": kept})).values()
                assert isinstance(balance, dict)
        finally:
            await kept.close()

    asyncio.run(run())
