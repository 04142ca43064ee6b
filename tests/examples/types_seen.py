"""The types that type checkers must infer for each public call; never run."""

from decimal import Decimal
from typing import Any, assert_type

from ccxt.base.types import Balance, Balances

from sunx_adapter import (
    AccountState,
    AccountSummary,
    AsyncHtxFutures,
    AsyncSunx,
    ExchangeHost,
    HtxFutures,
    Sunx,
)

Amounts = dict[str, float | str | Decimal]


def synchronous(sunx: Sunx, htx: HtxFutures) -> None:
    """Calls of the synchronous classes."""
    for exchange in (sunx, htx):
        assert_type(exchange.fetch_balance(), Balances)
        assert_type(exchange.fetchBalance(), Balances)
        assert_type(exchange.fetch_balance()["USDT"], Balance)
        assert_type(exchange.fetch_free_balance(), Amounts)
        assert_type(exchange.fetchFreeBalance(), Amounts)
        assert_type(exchange.fetch_used_balance(), Amounts)
        assert_type(exchange.fetchUsedBalance(), Amounts)
        assert_type(exchange.fetch_total_balance(), Amounts)
        assert_type(exchange.fetchTotalBalance(), Amounts)
        assert_type(exchange.fetch_partial_balance("free"), Amounts)
        assert_type(exchange.fetchPartialBalance("free"), Amounts)
        assert_type(exchange.fetch_account_summary(), AccountSummary)
        assert_type(exchange.parse_account_summary({}), AccountSummary)
        assert_type(exchange.fetch_account_summary().state, AccountState)
        assert_type(exchange.fetch_account_summary().equity, Decimal)
    with sunx as opened:
        assert_type(opened, Sunx)


async def asynchronous(sunx: AsyncSunx, htx: AsyncHtxFutures) -> None:
    """Calls of the asynchronous classes."""
    for exchange in (sunx, htx):
        assert_type(await exchange.fetch_balance(), Balances)
        assert_type(await exchange.fetchBalance(), Balances)
        assert_type(await exchange.watch_balance(), Balances)
        assert_type(await exchange.watchBalance(), Balances)
        assert_type(await exchange.fetch_free_balance(), Amounts)
        assert_type(await exchange.fetchFreeBalance(), Amounts)
        assert_type(await exchange.fetch_used_balance(), Amounts)
        assert_type(await exchange.fetchUsedBalance(), Amounts)
        assert_type(await exchange.fetch_total_balance(), Amounts)
        assert_type(await exchange.fetchTotalBalance(), Amounts)
        assert_type(await exchange.fetch_partial_balance("free"), Amounts)
        assert_type(await exchange.fetchPartialBalance("free"), Amounts)
        assert_type(await exchange.fetch_account_summary(), AccountSummary)
        async for balance in exchange.watch_balances():
            assert_type(balance, Balances)
    async with sunx as opened:
        assert_type(opened, AsyncSunx)


async def hosted(host: ExchangeHost) -> None:
    """Calls of exchanges made by a host."""
    assert_type(host.create("sunx").fetch_balance(), Balances)
    exchange = host.create("sunx", asynchronous=True)
    assert_type(await exchange.fetch_balance(), Balances)
    assert_type(await host.fetch_balances({}), dict[str, dict[str, Any] | Exception])
