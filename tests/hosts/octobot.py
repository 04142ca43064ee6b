# ruff: noqa: T201 - it prints its results
"""Tests OctoBot's trading package, in a separate environment, from the root of a clone.

``pip install 'octobot-trading[full]' . && python -m tests.hosts.octobot``

OctoBot makes the exchanges in its own way, from its own configuration, and reads balances of the
sandbox through its own classes. Unsupported calls are tried too, to show that they fail clearly.
"""

import asyncio
import copy
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from sunx_adapter import AsyncHtxFutures, AsyncSunx, Sandbox, register_with_ccxt
from tests.hosts.loopback import stay_on_this_machine

ACCOUNTS = ("main", "small", "indebted", "empty", "liquidating")
CLASSES: dict[str, Any] = {"sunx": AsyncSunx, "htxfutures": AsyncHtxFutures}

# Made up, because OctoBot starts no trader without a market and a time frame.
MARKET: dict[str, Any] = {
    "id": "BTC-USDT", "symbol": "BTC/USDT:USDT", "base": "BTC", "quote": "USDT", "settle": "USDT",
    "type": "swap", "swap": True, "linear": True, "spot": False, "contract": True,
    "contractSize": 0.001, "active": True, "precision": {"price": 0.1, "amount": 1}, "limits": {},
}  # fmt: skip


def exchange_tentacle(venue: Sandbox, exchange_id: str) -> type:
    """Return an OctoBot "tentacle": a class that OctoBot finds by the exchange's name."""
    exchanges = import_module("octobot_trading.exchanges")
    future = import_module("octobot_trading.enums").ExchangeTypes.FUTURE
    given = {"timeframes": {"1h": "1h"}, "markets": {MARKET["symbol"]: MARKET}}
    given["urls"] = venue.config(exchange_id)["urls"]  # only to point it at the sandbox
    return type(
        exchange_id.title(),
        (exchanges.RestExchange,),
        {
            "get_name": classmethod(lambda _: exchange_id),
            "get_supported_exchange_types": classmethod(lambda _: [future]),
            "get_additional_connector_config": lambda _: copy.deepcopy(given),
        },
    )


def bot_config(exchange_id: str, keys: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return OctoBot's configuration: encrypted keys and a real trader."""
    encrypt = import_module("octobot_commons.configuration").encrypt
    return {
        "crypto-currencies": {},
        "time_frame": [],
        "exchanges": {
            exchange_id: {
                "api-key": encrypt(keys["apiKey"]).decode(),
                "api-secret": encrypt(keys["secret"]).decode(),
                "exchange-type": kind,
            }
        },
        "trading": {"risk": 0.5, "reference-market": "USDT"},
        "trader": {"enabled": True},
        "trader-simulator": {"enabled": False, "starting-portfolio": {}},
    }


@asynccontextmanager
async def make_manager(
    exchange_id: str, keys: dict[str, Any], kind: str = "future", *, trader: bool = False
) -> AsyncIterator[Any]:
    """Build OctoBot's exchange manager with OctoBot's builder; optionally with a trader."""
    builders = import_module("octobot_trading.exchanges.exchange_builder")
    builder = builders.ExchangeBuilder(bot_config(exchange_id, keys, kind), exchange_id)
    builder.is_using_exchange_type(kind).is_rest_only().disable_trading_mode()
    manager = await (builder.is_real() if trader else builder.is_exchange_only()).build()
    try:
        assert manager.exchange.authenticated(), "OctoBot went on without keys"
        yield manager
    finally:
        await manager.stop(warning_on_missing_elements=False)


async def expected_balance(exchange_id: str, keys: dict[str, Any]) -> dict[str, dict[str, Decimal]]:
    """Return the adapter's balance in OctoBot's form: decimals of floats' text, at least 0."""
    async with CLASSES[exchange_id](keys) as ours:
        balance = await ours.fetch_balance()
    return {
        code: {
            view: max(Decimal(str(balance[code][view])), Decimal(0))
            for view in ("free", "used", "total")
        }
        for code in balance["total"]
    }


async def balances(exchange_id: str, account: str, venue: Sandbox) -> str:
    """Compare ``get_balance()`` of OctoBot's exchange with the adapter's own answer."""
    keys = venue.config(exchange_id, account)
    expected = await expected_balance(exchange_id, keys)
    async with make_manager(exchange_id, keys) as manager:
        seen = await manager.exchange.get_balance()
    figures = {code: {view: seen[code][view] for view in row} for code, row in expected.items()}
    assert figures == expected, f"{figures} instead of {expected}"
    shown = [f"{code} {row['total']}" for code, row in expected.items()] or ["nothing"]
    shown += [f"and a currency {code!r}" for code in seen.keys() - expected.keys()]
    return ", ".join(shown)


async def result_of(method: str, *arguments: object, venue: Sandbox) -> str:
    """Return the result of a method of OctoBot's exchange."""
    async with make_manager("sunx", venue.config("sunx")) as manager:
        return repr(await getattr(manager.exchange, method)(*arguments))


async def spot(venue: Sandbox) -> str:
    """Return a balance of an exchange that is configured for spot."""
    async with make_manager("sunx", venue.config("sunx"), "spot") as manager:
        return repr(await manager.exchange.get_balance())


async def portfolio(exchange_id: str, venue: Sandbox) -> str:
    """Return the portfolio of a whole OctoBot exchange with a real trader."""
    keys = venue.config(exchange_id)
    expected = await expected_balance(exchange_id, keys)
    async with make_manager(exchange_id, keys, trader=True) as manager:
        manager_state = manager.exchange_personal_data.portfolio_manager
        async with asyncio.timeout(10):
            while not manager_state.portfolio or not manager_state.portfolio.portfolio:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # OctoBot's own task fills it
        assets = manager_state.portfolio.portfolio
        seen = {code: (asset.available, asset.total) for code, asset in assets.items()}
    assert seen == {code: (row["free"], row["total"]) for code, row in expected.items()}, seen
    return ", ".join(f"{code} {free} of {total}" for code, (free, total) in seen.items())


def main() -> int:
    """Try everything; return 1 if something that must work does not."""
    stay_on_this_machine()
    logging.disable(logging.CRITICAL)
    register_with_ccxt()  # before OctoBot looks for its exchanges
    print("octobot-trading", version("octobot-trading"), "with ccxt", version("ccxt"))
    works: dict[str, Any] = {
        f"get_balance(), {id_}, account {account}": partial(balances, id_, account)
        for id_ in CLASSES
        for account in ACCOUNTS
    }
    works |= {f"portfolio, {id_}": partial(portfolio, id_) for id_ in CLASSES}
    fails: dict[str, Any] = {
        "spot": spot,
        "positions": partial(result_of, "get_positions"),
        "price": partial(result_of, "get_price_ticker", "BTC/USDT:USDT"),
        "all prices": partial(result_of, "get_all_currencies_price_ticker"),
        "open orders": partial(result_of, "get_open_orders"),
    }
    failed = 0
    with Sandbox() as venue:
        tentacles = [exchange_tentacle(venue, exchange_id) for exchange_id in CLASSES]
        for name, attempt in works.items():
            try:
                print(f"  works: {name}: {asyncio.run(attempt(venue=venue))}")
            except Exception as error:  # noqa: BLE001 - the others are still tried
                failed += 1
                print(f"  FAILS: {name}: {type(error).__name__}: {error}")
        for name, attempt in fails.items():
            try:
                print(f"  gives: {name}: {asyncio.run(attempt(venue=venue))}")
            except Exception as error:  # noqa: BLE001 - the others are still tried
                print(f"  not served: {name}: {type(error).__name__}: {error}")
        del tentacles  # kept until here, because OctoBot searches the existing classes
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
