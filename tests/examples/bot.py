# ruff: noqa: T201 - it prints to the terminal
"""A small bot: reads what it may spend with threads, tasks, the push channel and a host.

``python -m tests.examples.bot`` runs it against the sandbox. Type checkers read it too, see
``tests/test_types.py``.
"""

import asyncio
from decimal import Decimal
from typing import Any

from ccxt.base.errors import AuthenticationError, BaseError, NetworkError
from ccxt.base.types import Balances

from sunx_adapter import AsyncSunx, ExchangeHost, Holding, HtxFutures, Sandbox, Sunx

CURRENCY = "USDT"


def spendable(exchange: Sunx | HtxFutures) -> Decimal:
    """Return what may be spent; zero while the account may not trade."""
    if not exchange.fetch_account_summary().state.permits_trading:
        return Decimal(0)
    free = exchange.fetch_free_balance()
    return max(Decimal(free.get(CURRENCY, 0)), Decimal(0))


def look(exchange: Sunx | HtxFutures) -> str:
    """Return one round of the bot as text."""
    try:
        amount = spendable(exchange)
    except NetworkError as error:
        return f"later: {error}"
    except AuthenticationError as error:
        raise SystemExit(f"check the keys: {error}") from error
    except BaseError as error:
        return f"not now: {error}"
    return f"{exchange.id}: {amount} {CURRENCY} to spend"


def used_share(balance: Balances) -> Decimal | None:
    """Return how much of the equity is in use; ``None`` without equity."""
    row = balance[CURRENCY]
    used, total = row["used"], row["total"]
    if used is None or total is None or not Decimal(total):
        return None
    return Decimal(used) / Decimal(total)


async def react(config: dict[str, Any], venue: Sandbox) -> Decimal | None:
    """Wait for the next change of the account."""
    async with AsyncSunx(config) as exchange:
        share = used_share(await exchange.fetch_balance({"free": "withdrawable"}))
        await exchange.watch_balance()
        venue.update("main", [Holding(CURRENCY, cash="5", initial_margin="2")])
        async with asyncio.timeout(10):
            async for balance in exchange.watch_balances():
                if used_share(balance) != share:
                    return used_share(balance)
    return None


def through_a_host(host: ExchangeHost, exchange_id: str, config: dict[str, Any]) -> dict[str, str]:
    """Return each currency's total through a host, whatever plugin serves the id."""
    exchange = host.create(exchange_id, config)
    try:
        balance = exchange.fetch_balance()
        return {code: str(total) for code, total in balance["total"].items()}
    finally:
        exchange.close()


def main() -> None:
    """Run every example."""
    with Sandbox() as venue:
        exact: dict[str, Any] = {"number": Decimal}
        for account in ("main", "liquidating"):
            with Sunx({**venue.config("sunx", account), **exact}) as exchange:
                print(account, look(exchange))
        with HtxFutures({**venue.config("htxfutures"), **exact}) as other:
            print(look(other))
        print(through_a_host(ExchangeHost(), "sunx", venue.config("sunx")))
        print(asyncio.run(react({**venue.config("sunx"), **exact}, venue)), "in use")


if __name__ == "__main__":
    main()
