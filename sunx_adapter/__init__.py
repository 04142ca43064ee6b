"""Exact futures balances from SunX and HTX (v5) through ccxt's ``fetch_balance()``.

The names below are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sunx_adapter.exchange.asynchronous import AsyncHtxFutures, AsyncSunx
    from sunx_adapter.exchange.sync import HtxFutures, Sunx
    from sunx_adapter.host import ExchangeHost
    from sunx_adapter.protocol.account import AccountState, AccountSummary
    from sunx_adapter.registration import register_with_ccxt
    from sunx_adapter.sandbox import Holding, Sandbox

__all__ = [
    "AccountState",
    "AccountSummary",
    "AsyncHtxFutures",
    "AsyncSunx",
    "ExchangeHost",
    "Holding",
    "HtxFutures",
    "Sandbox",
    "Sunx",
    "__version__",
    "register_with_ccxt",
]

_MODULES = {
    "AccountState": "sunx_adapter.protocol.account",
    "AccountSummary": "sunx_adapter.protocol.account",
    "AsyncHtxFutures": "sunx_adapter.exchange.asynchronous",
    "AsyncSunx": "sunx_adapter.exchange.asynchronous",
    "ExchangeHost": "sunx_adapter.host",
    "Holding": "sunx_adapter.sandbox",
    "HtxFutures": "sunx_adapter.exchange.sync",
    "Sandbox": "sunx_adapter.sandbox",
    "Sunx": "sunx_adapter.exchange.sync",
    "register_with_ccxt": "sunx_adapter.registration",
}


if not TYPE_CHECKING:  # a type checker must know only the names above

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
