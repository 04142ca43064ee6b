"""A local venue for trying things out and for tests: real HTTP, real signatures, made-up money.

It serves both path variants on a real TCP port and refuses what the venues refuse, in their
words; and it goes wrong on demand::

    with Sandbox(faults=["reset@0.2", "code=1004@0.1"], seed=1) as sandbox:
        with Sunx(sandbox.config("sunx")) as exchange:
            exchange.fetch_balance()

The modules: ``accounts`` (what an account is), ``holdings`` (consistent amounts from a few
figures), ``life`` (how they change), ``defaults`` (accounts without a file), ``accounts_file``
(accounts from JSON), ``answers`` (what HTTP answers look like), ``signatures`` (who may read),
``responder`` (what is answered), ``delivery`` (how bytes go out), ``fault_table`` (what can go
wrong, and how it is played), ``faults`` (how that is written, and when it happens),
``push`` (the push channel), ``http_server`` (the port and its thread), ``server`` (all together).
"""

from typing import TYPE_CHECKING, Any

from sunx_adapter.sandbox.accounts import AccountRefusal, SandboxAccount
from sunx_adapter.sandbox.accounts_file import AccountsFileError, dump_accounts, load_accounts
from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS
from sunx_adapter.sandbox.fault_table import FaultRule
from sunx_adapter.sandbox.faults import Fault, FaultError, fault_kinds, parse_fault
from sunx_adapter.sandbox.holdings import Holding, balance_data

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
    """Load the server on first use: a help text needs the faults' names only."""
    if name in {"Sandbox", "SandboxRequest"}:
        from sunx_adapter.sandbox import server  # noqa: PLC0415 - aiohttp is slow to load

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
