"""The accounts of a sandbox that is given none. Keys and amounts are made up."""

import base64
from typing import Final

from sunx_adapter.sandbox.accounts import AccountRefusal, SandboxAccount
from sunx_adapter.sandbox.holdings import Holding, balance_data

_BTC: Final = "64000"
_ETH: Final = "2600"


def _account(
    number: int,
    name: str,
    *holdings: Holding,
    state: str = "normal",
    asset_mode: int = 1,
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


DEFAULT_ACCOUNTS: Final[tuple[SandboxAccount, ...]] = (
    # Three currencies, margin in use, a profit here and a loss there, all 18 places.
    _account(
        1,
        "main",
        Holding(
            "USDT",
            cash="12480.250075113264418803",
            profit_unreal="186.4",
            initial_margin="3210.75",
            maintenance_margin="642.15",
        ),
        Holding("BTC", cash="0.40000001", price=_BTC),
        Holding(
            "ETH",
            cash="5.2",
            profit_unreal="-0.035",
            initial_margin="0.75",
            maintenance_margin="0.15",
            price=_ETH,
        ),
    ),
    # SunX's printed example.
    _account(2, "small", Holding("USDT", cash="0.004015101942876636")),
    # HTX's printed example: cash below zero, held up by a bitcoin; vouchers are sent as "".
    _account(
        3,
        "indebted",
        Holding(
            "USDT",
            cash="-0.0050448676",
            profit_unreal="-0.091875",
            initial_margin="2.8999998",
            maintenance_margin="0.05437499625",
            voucher="",
        ),
        Holding("BTC", cash="1", price="75000", voucher=""),
    ),
    _account(4, "empty"),
    _account(
        5,
        "liquidating",
        Holding(
            "USDT",
            cash="950",
            profit_unreal="-880.25",
            initial_margin="400",
            maintenance_margin="80",
        ),
        state="liquidating",
    ),
    # The pages' table tells states by number; the examples by name.
    _account(
        6,
        "adl",
        Holding(
            "USDT",
            cash="2000",
            profit_unreal="1500.5",
            initial_margin="900",
            maintenance_margin="180",
        ),
        state="5",
    ),
    _account(
        7,
        "open_limit",
        Holding(
            "USDT",
            cash="300",
            profit_unreal="-120",
            initial_margin="150",
            maintenance_margin="90",
        ),
        Holding("ETH", cash="0.01", price=_ETH),
        state="open_limit",
    ),
    _account(8, "locked", refusal=AccountRefusal(12009, "The user was locked or does not exist")),
    _account(9, "unopened", refusal=AccountRefusal(4002, "Futures trading is not opened")),
    # SunX knows no other mode than multi-assets, so only v5 refuses this one.
    _account(10, "single_asset", Holding("USDT", cash="100"), asset_mode=0),
)
