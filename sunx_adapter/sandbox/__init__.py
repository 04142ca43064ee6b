"""A local venue for trying things out and for tests: real HTTP, real signatures, made-up money.

It serves both path variants on a real TCP port and refuses what the venues refuse, in their
words::

    with Sandbox() as sandbox:
        with Sunx(sandbox.config("sunx")) as exchange:
            exchange.fetch_balance()

The modules: ``accounts`` (what an account is), ``holdings`` (consistent amounts from a few
figures), ``defaults`` (the accounts that are there without a file), ``accounts_file`` (accounts
from JSON), ``checks`` (who may read, pure), ``answers`` (what is answered, pure), ``server`` (the
port and its thread).
"""

from sunx_adapter.sandbox.accounts import AccountRefusal, SandboxAccount
from sunx_adapter.sandbox.accounts_file import AccountsFileError, dump_accounts, load_accounts
from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS
from sunx_adapter.sandbox.holdings import Holding, balance_data
from sunx_adapter.sandbox.server import Sandbox, SandboxRequest

__all__ = [
    "DEFAULT_ACCOUNTS",
    "AccountRefusal",
    "AccountsFileError",
    "Holding",
    "Sandbox",
    "SandboxAccount",
    "SandboxRequest",
    "balance_data",
    "dump_accounts",
    "load_accounts",
]
