"""The default accounts, and any number of generated ones. Keys and amounts are made up."""

import base64
from typing import Final, Literal

from sunx_adapter.sandbox.accounts import (
    MULTI_ASSETS_MODE,
    SINGLE_ASSET_MODE,
    AccountRefusal,
    SandboxAccount,
)
from sunx_adapter.sandbox.holdings import PRICES, Holding, balance_data


def _account(
    number: int,
    name: str,
    *holdings: Holding,
    state: str = "normal",
    asset_mode: Literal[0, 1, 2] = MULTI_ASSETS_MODE,
    refusal: AccountRefusal | None = None,
) -> SandboxAccount:
    return SandboxAccount(
        name=name,
        uid=str(100000000 + number),
        api_key=f"sandbox-{name}-access-key",
        secret=f"sandbox-{name}-secret",
        # Any 32 bytes are an Ed25519 key; readable ones are obviously made up.
        private_key=base64.b64encode(f"sandbox-{name}-key".encode().ljust(32, b".")).decode(),
        balance=balance_data(holdings, state=state),
        asset_mode=asset_mode,
        refusal=refusal,
    )


# A holding's amounts: cash, unrealised PnL, initial margin, maintenance margin.
DEFAULT_ACCOUNTS: Final[tuple[SandboxAccount, ...]] = (
    # Three currencies, margin in use, a profit, a loss, amounts with 18 decimal places.
    _account(
        1,
        "main",
        Holding("USDT", "12480.250075113264418803", "186.4", "3210.75", "642.15"),
        Holding("BTC", "0.40000001", price=PRICES["BTC"]),
        Holding("ETH", "5.2", "-0.035", "0.75", "0.15", price=PRICES["ETH"]),
    ),
    # The example on SunX's page.
    _account(2, "small", Holding("USDT", "0.004015101942876636")),
    # The example on HTX's page: negative cash, covered by a bitcoin; vouchers are "".
    _account(
        3,
        "indebted",
        Holding("USDT", "-0.0050448676", "-0.091875", "2.8999998", "0.05437499625", voucher=""),
        Holding("BTC", "1", price="75000", voucher=""),
    ),
    _account(4, "empty"),
    _account(5, "liquidating", Holding("USDT", "950", "-880.25", "400", "80"), state="liquidating"),
    # A state may be a number, as in the table on the venues' pages, or a name, as in the examples.
    _account(6, "adl", Holding("USDT", "2000", "1500.5", "900", "180"), state="5"),
    _account(
        7,
        "open_limit",
        Holding("USDT", "300", "-120", "150", "90"),
        Holding("ETH", "0.01", price=PRICES["ETH"]),
        state="open_limit",
    ),
    _account(8, "locked", refusal=AccountRefusal(12009, "The user was locked or does not exist")),
    _account(9, "unopened", refusal=AccountRefusal(4002, "Futures trading is not opened")),
    # SunX has no other mode than multi-assets, so only v5 refuses this account.
    _account(10, "single_asset", Holding("USDT", "100"), asset_mode=SINGLE_ASSET_MODE),
)


def numbered_accounts(count: int) -> tuple[SandboxAccount, ...]:
    """``account-1`` to ``account-COUNT``, each with its own uid, key and amount.

    The cash of ``account-7`` is 1007 USDT, so a balance identifies its account.
    """
    return tuple(
        _account(
            1000 + number,
            f"account-{number}",
            Holding("USDT", str(1000 + number), "12.5", "100", "20"),
        )
        for number in range(1, count + 1)
    )
