# ruff: noqa: T201 - it prints its results
"""Tests freqtrade's own code, in a separate environment, from the root of a clone.

``pip install freqtrade . && python -m tests.hosts.freqtrade_bot.try_it``

Balances are read through freqtrade's own resolver, exchange and wallets, and at last by a whole bot
in live mode. Unsupported calls are tried too, to show that they fail clearly.
"""

import base64
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx

from sunx_adapter import HtxFutures, Sandbox, Sunx, register_with_ccxt
from tests.hosts.loopback import stay_on_this_machine
from tests.ports import free_port

HERE = Path(__file__).parent
ACCOUNTS = ("main", "small", "indebted", "empty", "liquidating")
CLASSES: dict[str, Any] = {"sunx": Sunx, "htxfutures": HtxFutures}


def bot_config(exchange_id: str, keys: dict[str, Any], trading_mode: str) -> dict[str, Any]:
    """Return freqtrade's live configuration with an exchange of the sandbox."""
    return {
        "runmode": import_module("freqtrade.enums").RunMode.LIVE,
        "dry_run": False,
        "dry_run_wallet": 1000,
        "stake_currency": "USDT",
        "trading_mode": trading_mode,
        "margin_mode": "cross" if trading_mode == "futures" else "",
        "exchange": {
            "name": exchange_id,
            "key": keys["apiKey"],
            "secret": keys["secret"],
            "password": "",
            "ccxt_config": {"urls": keys["urls"], "headers": {"X-Bot": "freqtrade"}},
        },
    }


@contextmanager
def make_exchange(
    exchange_id: str, account: str, trading_mode: str = "spot"
) -> Iterator[tuple[Any, ...]]:
    """Make freqtrade's exchange in its own way; yield it with its configuration and keys."""
    resolver = import_module("freqtrade.resolvers").ExchangeResolver
    with Sandbox() as venue:
        keys = venue.config(exchange_id, account)
        config = bot_config(exchange_id, keys, trading_mode)
        exchange = resolver.load_exchange(config, validate=False)
        try:
            yield exchange, config, keys
        finally:
            exchange.close()


def figures(balance: Any) -> dict[str, tuple[float, float, float]]:
    """Return free, used and total by currency of a ccxt balance."""
    views = ("info", "free", "used", "total", "debt", "timestamp", "datetime")
    return {
        code: (row["free"], row["used"], row["total"])
        for code, row in balance.items()
        if code not in views
    }


def balances(exchange_id: str, account: str) -> str:
    """Compare ``get_balances()`` and a live wallet update with the adapter's own answer."""
    wallets_class = import_module("freqtrade.wallets").Wallets
    with (
        make_exchange(exchange_id, account) as (exchange, config, keys),
        CLASSES[exchange_id](keys) as ours,
    ):
        expected = figures(ours.fetch_balance())
        assert figures(exchange.get_balances()) == expected
        wallets = wallets_class(config, exchange)
        wallets.update()
        seen = {
            code: (wallet.free, wallet.used, wallet.total)
            for code, wallet in wallets.get_all_balances().items()
            if code != "debt"
        }
        assert seen == expected
        return ", ".join(f"{code} {total}" for code, (_, _, total) in seen.items()) or "nothing"


def listed() -> str:
    """Return what ``freqtrade list-exchanges --all`` shows."""
    utils = import_module("freqtrade.exchange.exchange_utils")
    found = {e["classname"]: e for e in utils.list_available_exchanges(all_exchanges=True)}
    return "; ".join(f"{id_}: {found[id_]['comment']}" for id_ in CLASSES)


def tickers() -> str:
    """Return freqtrade's answer to a request for all prices."""
    with make_exchange("sunx", "main") as (exchange, _, _):
        return f"{exchange.get_tickers()}"


def conversion() -> str:
    """Return freqtrade's conversion rate of another currency."""
    with make_exchange("sunx", "main") as (exchange, _, _):
        return f"{exchange.get_conversion_rate('BTC', 'USDT')}"


def futures_wallets() -> str:
    """Update wallets in futures mode, which also asks for positions."""
    wallets_class = import_module("freqtrade.wallets").Wallets
    with make_exchange("sunx", "main", "futures") as (exchange, config, _):
        return repr(wallets_class(config, exchange))


def order() -> str:
    """Create an order."""
    with make_exchange("sunx", "main") as (exchange, _, _):
        return repr(
            exchange.create_order(
                pair="BTC/USDT", ordertype="limit", side="buy", amount=1, rate=1, leverage=1
            )
        )


def markets() -> str:
    """Check the markets, as a bot does when it starts."""
    with make_exchange("sunx", "main") as (exchange, _, _):
        exchange.reload_markets(True)
        exchange.validate_stakecurrency("USDT")
        return repr(exchange.markets)


def whole_bot() -> str:
    """Run ``freqtrade trade`` in live mode, stopped, and read its REST server's balance."""
    with Sandbox() as venue, tempfile.TemporaryDirectory() as directory:
        keys = venue.config("sunx", "main")
        port = free_port()
        overrides = {
            "user_data_dir": directory,
            "strategy_path": str(HERE),
            "db_url": "sqlite://",
            "exchange": {
                "key": keys["apiKey"],
                "secret": keys["secret"],
                "ccxt_config": {"urls": keys["urls"]},
            },
            "api_server": {"listen_port": port, "jwt_secret_key": "made-up " * 5},
        }
        config = Path(directory) / "sandbox.json"
        config.write_text(json.dumps(overrides))
        command = [str(HERE / "launch.py"), "trade", "-c", str(HERE / "watch.json")]
        with subprocess.Popen(
            [sys.executable, *command, "-c", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as bot:
            assert bot.stdout is not None
            output = []
            for line in bot.stdout:
                output.append(line)
                if "Changing state to: STOPPED" in line:
                    break
            else:
                raise RuntimeError("the bot did not start:\n" + "".join(output[-20:]))
            login = base64.b64encode(b"me:choose-one").decode()
            answer = httpx.get(
                f"http://127.0.0.1:{port}/api/v1/balance",
                headers={"Authorization": f"Basic {login}"},
                timeout=10,
            )
            bot.send_signal(signal.SIGINT)
            output += bot.stdout.readlines()
        assert keys["secret"] not in "".join(output)
        rows = answer.raise_for_status().json()["currencies"]
        return ", ".join(
            f"{row['currency']} {row['free']} of {row['balance']}, in USDT {row['est_stake']}"
            for row in rows
        )


def main() -> int:
    """Try everything; return 1 if something that must work does not."""
    stay_on_this_machine()
    register_with_ccxt()
    print("freqtrade", import_module("freqtrade").__version__)
    works: list[tuple[str, Callable[[], str]]] = [
        (f"balance and wallets, {id_}, account {account}", partial(balances, id_, account))
        for id_ in CLASSES
        for account in ACCOUNTS
    ]
    works += [("listed", listed), ("whole bot, live", whole_bot)]
    failed = 0
    for name, attempt in works:
        try:
            print(f"  works: {name}: {attempt()}")
        except Exception as error:  # noqa: BLE001 - the others are still tried
            failed += 1
            print(f"  FAILS: {name}: {type(error).__name__}: {error}")
    for attempt in (tickers, conversion, futures_wallets, order, markets):
        try:
            print(f"  gives: {attempt.__name__}: {attempt()}")
        except Exception as error:  # noqa: BLE001 - the others are still tried
            print(f"  not served: {attempt.__name__}: {type(error).__name__}: {error}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
