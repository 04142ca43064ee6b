# ruff: noqa: T201 - it prints its results
"""Tests investing-algorithm-framework, in a separate environment, from the root of a clone.

``pip install investing-algorithm-framework . && python -m tests.hosts.investing``

The framework makes the exchanges by their ids, reads balances of the sandbox through its own
portfolio provider, and at last runs a whole bot that reads its unallocated balance.
"""

import logging
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from sunx_adapter import HtxFutures, Sandbox, Sunx, register_with_ccxt
from tests.hosts.loopback import stay_on_this_machine

ACCOUNTS = ("main", "small", "indebted", "empty", "liquidating")
CLASSES: dict[str, Any] = {"sunx": Sunx, "htxfutures": HtxFutures}


def provider(keys: Mapping[str, Any]) -> Any:
    """Return the framework's portfolio provider for ccxt, pointed at the sandbox."""
    theirs = import_module(
        "investing_algorithm_framework.infrastructure.portfolio_providers"
    ).CCXTPortfolioProvider

    def initialize_exchange(market: str, credential: Any) -> Any:
        exchange = theirs.initialize_exchange(market, credential)
        exchange.urls = {**exchange.urls, **keys["urls"]}
        return exchange

    pointed = {"initialize_exchange": staticmethod(initialize_exchange)}
    return type("SandboxPortfolioProvider", (theirs,), pointed)()


def positions(exchange_id: str, account: str, venue: Sandbox) -> str:
    """Compare each currency of the provider with the adapter's own ``free``."""
    framework = import_module("investing_algorithm_framework.domain")
    keys = venue.config(exchange_id, account)
    with CLASSES[exchange_id](keys) as ours:
        expected = ours.fetch_balance()["free"]
    credential = framework.MarketCredential(
        market=exchange_id, api_key=keys["apiKey"], secret_key=keys["secret"]
    )
    portfolio = type("Portfolio", (), {"market": exchange_id.upper(), "id": 1})
    seen = {}
    for code in ("USDT", "BTC", "ETH", "XRP"):
        position = provider(keys).get_position(portfolio, code, credential)
        if position is not None:
            seen[code] = position.amount
    assert seen == {code: expected[code] for code in seen}, (seen, expected)
    assert len(seen) == len(expected), (seen, expected)
    return ", ".join(f"{code} {amount}" for code, amount in seen.items()) or "nothing"


def whole_bot(exchange_id: str, venue: Sandbox) -> str:
    """Run a bot for one round whose strategy reads the unallocated balance."""
    framework = import_module("investing_algorithm_framework")
    keys = venue.config(exchange_id)
    unallocated: list[float] = []

    def run_strategy(_: object, context: Any, data: object) -> None:  # noqa: ARG001
        unallocated.append(context.get_unallocated())

    members = {"time_unit": framework.TimeUnit.SECOND, "interval": 1, "run_strategy": run_strategy}
    strategy = type("Look", (framework.TradingStrategy,), members)
    with tempfile.TemporaryDirectory() as directory:
        app = framework.create_app(config={"RESOURCE_DIRECTORY": directory})
        app.add_portfolio_provider(provider(keys))
        app.add_market(
            market=exchange_id,
            trading_symbol="USDT",
            api_key=keys["apiKey"],
            secret_key=keys["secret"],
        )
        app.add_strategy(strategy)
        app.run(number_of_iterations=1)
    with CLASSES[exchange_id](keys) as ours:
        expected = ours.fetch_balance()["USDT"]["free"]
    assert unallocated == [expected], (unallocated, expected)
    return f"{unallocated[0]} USDT"


def main() -> int:
    """Try everything; return 1 if something that must work does not."""
    stay_on_this_machine()
    logging.disable(logging.CRITICAL)
    register_with_ccxt()
    print(
        *("investing-algorithm-framework", version("investing-algorithm-framework")),
        *("with ccxt", version("ccxt")),
    )
    works = {
        f"positions, {id_}, account {account}": partial(positions, id_, account)
        for id_ in CLASSES
        for account in ACCOUNTS
    }
    works |= {f"whole bot, {id_}": partial(whole_bot, id_) for id_ in CLASSES}
    failed = 0
    with Sandbox() as venue:
        for name, attempt in works.items():
            try:
                print(f"  works: {name}: {attempt(venue=venue)}")
            except Exception as error:  # noqa: BLE001 - the others are still tried
                failed += 1
                print(f"  FAILS: {name}: {type(error).__name__}: {error}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
