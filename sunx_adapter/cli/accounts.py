"""The accounts that a command's options select."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sunx_adapter.cli.output import UsageError
from sunx_adapter.hints import did_you_mean
from sunx_adapter.host import HostError
from sunx_adapter.keys import (
    KEYS_FILE_VARIABLE,
    Account,
    account_from_environment,
    account_names,
    accounts_from_environment,
    missing_keys,
)
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import ExitStack

    from sunx_adapter.host import ExchangeHost
    from sunx_adapter.sandbox import Sandbox


def opened_sandbox(stack: ExitStack, wanted: bool, life: float | None = None) -> Sandbox | None:
    """Start a sandbox if one is wanted; the stack closes it."""
    if not wanted:
        return None
    from sunx_adapter.sandbox import Sandbox  # noqa: PLC0415 - slow

    return stack.enter_context(Sandbox(life=life))


def sandbox_accounts(
    sandbox: Sandbox, exchanges: Iterable[str] | None, account: str | None
) -> dict[str, Account]:
    """The sandbox's accounts, by exchange.

    Raises:
        ValueError: the sandbox has no such exchange or account.
    """
    return {
        name: Account(name, sandbox.config(name, account)) for name in exchanges or list(VENUES)
    }


def chosen_accounts(
    host: ExchangeHost, exchanges: Sequence[str] | None, account: str | None
) -> dict[str, Account]:
    """The selected accounts of the environment and the keys file, by name.

    Raises:
        UsageError: keys are missing; the message names the variables.
        KeysError: the keys file is invalid.
        HostError: no plugin offers an exchange.
    """
    for exchange_id in exchanges or ():
        try:
            host.offer(exchange_id)  # check the id first: the keys do not matter if it is unknown
        except HostError as error:
            if exchange_id in account_names():
                raise UsageError(
                    f"{exchange_id!r} is an account, not an exchange; use --account {exchange_id}"
                ) from error
            raise
    if account is not None:
        accounts = {account: named_account(account)}
    else:
        accounts = accounts_from_environment()
    if exchanges:
        accounts = {name: each for name, each in accounts.items() if each.exchange in exchanges}
        if account is None:  # other exchanges of ccxt, by their variables alone
            named = {
                each: account_from_environment(each) for each in exchanges if each not in accounts
            }
            accounts |= {name: each for name, each in named.items() if each.config}
        without = [
            each
            for each in exchanges
            if each not in {found.exchange for found in accounts.values()}
        ]
    else:
        without = [] if accounts else list(VENUES)
    if without and account is not None:
        raise UsageError(f"the account {account!r} is not an account of {' or '.join(without)}")
    incomplete = [_missing_keys_text(name, each.config) for name, each in accounts.items()]
    if problems := [*map(_no_keys_text, without), *filter(None, incomplete)]:
        raise UsageError(
            "\n".join(problems)
            + "\nOr put the keys in a TOML file, in one table per account, and set "
            f"{KEYS_FILE_VARIABLE} to its path.\n"
            "To try it without keys: sunx-adapter balance --sandbox"
        )
    return accounts


def named_account(name: str) -> Account:
    """The account with this name.

    Raises:
        UsageError: it has no keys; the message may suggest a similar name.
        KeysError: the keys file is invalid.
    """
    account = account_from_environment(name)
    if account.config or name in VENUES:
        return account
    known = account_names()
    file = "" if known else f"; set {KEYS_FILE_VARIABLE} to the path of the file with its table"
    raise UsageError(
        f"no keys for the account {name!r}{file or did_you_mean(name, known)}"
        "\nFor an account of the sandbox add --sandbox"
    )


def _missing_keys_text(name: str, config: dict[str, object]) -> str:
    missing = missing_keys(name, config)
    return f"keys for {name} are incomplete: set {' and '.join(missing)}" if missing else ""


def _no_keys_text(exchange_id: str) -> str:
    missing = f"set {' and '.join(missing_keys(exchange_id, {}))}"
    similar = [venue for venue in VENUES if venue.startswith(exchange_id) and venue != exchange_id]
    if similar:
        return (
            f"no keys for {exchange_id}, which is ccxt's own exchange; did you mean "
            f"{similar[0]!r}? If not, {missing}"
        )
    return f"no keys for {exchange_id}: {missing}"
