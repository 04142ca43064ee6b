"""A local venue for trying things out and for tests: real HTTP, real signatures, made-up money.

It serves both path variants on a real TCP port and refuses what the venues refuse, in their
words; and it goes wrong on demand::

    with Sandbox(faults=["reset@0.2", "code=1004@0.1"], seed=1) as sandbox:
        with Sunx(sandbox.config("sunx")) as exchange:
            exchange.fetch_balance()

The modules: ``accounts`` (what an account is), ``holdings`` (consistent amounts from a few
figures), ``defaults`` (the accounts that are there without a file), ``accounts_file`` (accounts
from JSON), ``checks`` (who may read, pure), ``answers`` (what is answered, pure), ``faults`` (what
can go wrong, as data), ``fault_plan`` (when it does), ``spoiling`` (wrong answers, pure), ``wire``
(what goes wrong below HTTP), ``push`` (the push channel), ``life`` (accounts that change),
``port`` (the listening port), ``server`` (the thread behind it).

The names below are loaded on first use: the table of faults, for a help text, costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sunx_adapter.sandbox.accounts import AccountRefusal, SandboxAccount
    from sunx_adapter.sandbox.accounts_file import AccountsFileError, dump_accounts, load_accounts
    from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS
    from sunx_adapter.sandbox.faults import (
        Fault,
        FaultError,
        FaultKind,
        FaultRule,
        fault_kinds,
        parse_fault,
    )
    from sunx_adapter.sandbox.holdings import Holding, balance_data
    from sunx_adapter.sandbox.server import Sandbox, SandboxRequest

__all__ = [
    "DEFAULT_ACCOUNTS",
    "AccountRefusal",
    "AccountsFileError",
    "Fault",
    "FaultError",
    "FaultKind",
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

_HOMES = {
    "AccountRefusal": "accounts",
    "AccountsFileError": "accounts_file",
    "DEFAULT_ACCOUNTS": "defaults",
    "Fault": "faults",
    "FaultError": "faults",
    "FaultKind": "faults",
    "FaultRule": "faults",
    "Holding": "holdings",
    "Sandbox": "server",
    "SandboxAccount": "accounts",
    "SandboxRequest": "server",
    "balance_data": "holdings",
    "dump_accounts": "accounts_file",
    "fault_kinds": "faults",
    "load_accounts": "accounts_file",
    "parse_fault": "faults",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
