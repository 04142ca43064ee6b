"""The accounts of a sandbox that is given none, or a number. Keys and amounts are made up."""

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
        # Any 32 bytes are an Ed25519 key; these can be seen to be nobody's.
        private_key=base64.b64encode(f"sandbox-{name}-key".encode().ljust(32, b".")).decode(),
        balance=balance_data(holdings, state=state),
        asset_mode=asset_mode,
        refusal=refusal,
    )


# A holding's figures: cash, unrealised PnL, initial margin, maintenance margin.
DEFAULT_ACCOUNTS: Final[tuple[SandboxAccount, ...]] = (
    # Three currencies, margin in use, a profit here and a loss there, all 18 places.
    _account(
        1,
        "main",
        Holding("USDT", "12480.250075113264418803", "186.4", "3210.75", "642.15"),
        Holding("BTC", "0.40000001", price=PRICES["BTC"]),
        Holding("ETH", "5.2", "-0.035", "0.75", "0.15", price=PRICES["ETH"]),
    ),
    # SunX's printed example.
    _account(2, "small", Holding("USDT", "0.004015101942876636")),
    # HTX's printed example: cash below zero, held up by a bitcoin; vouchers are sent as "".
    _account(
        3,
        "indebted",
        Holding("USDT", "-0.0050448676", "-0.091875", "2.8999998", "0.05437499625", voucher=""),
        Holding("BTC", "1", price="75000", voucher=""),
    ),
    _account(4, "empty"),
    _account(5, "liquidating", Holding("USDT", "950", "-880.25", "400", "80"), state="liquidating"),
    # A state may be a number, as in the pages' table, or a name, as in their examples.
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
    # SunX knows no other mode than multi-assets, so only v5 refuses this one.
    _account(10, "single_asset", Holding("USDT", "100"), asset_mode=SINGLE_ASSET_MODE),
)


def numbered_accounts(count: int) -> tuple[SandboxAccount, ...]:
    """``account-1`` to ``account-COUNT``, each with a user, a key and an amount of its own.

    The cash of ``account-7`` is 1007 USDT, so that no two accounts can be taken for each other.
    """
    return tuple(
        _account(
            1000 + number,
            f"account-{number}",
            Holding("USDT", str(1000 + number), "12.5", "100", "20"),
        )
        for number in range(1, count + 1)
    )
