"""A local venue for experiments and tests: real HTTP and signatures, made-up money.

It serves both path variants on a real TCP port. It refuses what the venues refuse, with their codes
and messages, and it simulates faults on demand::

    with Sandbox(faults=["reset@0.2", "code=1004@0.1"], seed=1) as sandbox:
        with Sunx(sandbox.config("sunx")) as exchange:
            exchange.fetch_balance()

``balances`` computes amounts, ``accounts`` has the accounts, ``accounts_file`` reads them.
``answers`` has the formats, ``signatures`` authenticates requests, ``responder`` answers them.
``fault_table`` has every kind of fault, ``faults`` draws them. ``delivery`` and ``http_server``
send any bytes, ``push`` is the push channel, and ``server`` is the whole sandbox.
"""

from typing import TYPE_CHECKING, Any

from sunx_adapter.sandbox.accounts import DEFAULT_ACCOUNTS, AccountRefusal, SandboxAccount
from sunx_adapter.sandbox.accounts_file import AccountsFileError, dump_accounts, load_accounts
from sunx_adapter.sandbox.balances import Holding, balance_data
from sunx_adapter.sandbox.fault_table import FaultError, FaultRule
from sunx_adapter.sandbox.faults import Fault, fault_kinds, parse_fault

if TYPE_CHECKING:
    from sunx_adapter.sandbox.server import Sandbox, SandboxRequest

__all__ = [
    "DEFAULT_ACCOUNTS",
    "AccountRefusal",
    "AccountsFileError",
    "Fault",
    "FaultError",
    "FaultRule",
    "Holding",
    "Sandbox",
    "SandboxAccount",
    "SandboxRequest",
    "balance_data",
    "dump_accounts",
    "fault_kinds",
    "load_accounts",
    "parse_fault",
]


def __getattr__(name: str) -> Any:
    """Load the server on first use: ``--help`` needs only the fault kinds."""
    if name in {"Sandbox", "SandboxRequest"}:
        from sunx_adapter.sandbox import server  # noqa: PLC0415 - aiohttp is slow to load

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
