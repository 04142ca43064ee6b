"""``sunx-adapter balance``."""

from __future__ import annotations

import gc
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sunx_adapter.cli.accounts import chosen_accounts, opened_sandbox, sandbox_accounts
from sunx_adapter.cli.options import (
    AccountOption,
    ExchangesOption,
    FreeOption,
    SandboxOption,
    VerboseOption,
    examples,
)
from sunx_adapter.cli.output import (
    UsageError,
    err,
    error_text,
    log_to_stderr,
    print_error,
    print_json,
    redacted,
)
from sunx_adapter.host import ExchangeHost, HostError
from sunx_adapter.keys import Account, KeysError
from sunx_adapter.venue import VENUES, FreePolicy

if TYPE_CHECKING:
    from sunx_adapter.protocol.account import AccountSummary

MANY_ACCOUNTS = 100

EPILOG = examples(
    "sunx-adapter balance --sandbox",
    "sunx-adapter balance -e sunx --precise",
    "sunx-adapter balance -e htxfutures --free withdrawable --json",
)


def balance(
    exchange: ExchangesOption = None,
    account: AccountOption = None,
    sandbox: SandboxOption = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print only ccxt's balance structure as JSON, with exact amounts as text; for "
            "several accounts, by account name.",
        ),
    ] = False,
    free: FreeOption = None,
    precise: Annotated[
        bool, typer.Option("--precise", help="Show all digits, not only 8 decimal places.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Read balances and show them. The exit status is 0 only if all of them were read."""
    # Garbage collection would take a quarter of the time, and the imports leave no garbage.
    gc.disable()
    if verbose:
        log_to_stderr("sunx_adapter")
    host = ExchangeHost()
    structures: dict[str, Any] = {}
    failed = False
    with ExitStack() as stack:
        try:
            local = opened_sandbox(stack, sandbox)
            accounts = (
                sandbox_accounts(local, exchange, account)
                if local
                else chosen_accounts(host, exchange, account)
            )
        except (UsageError, KeysError, HostError, ValueError) as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        if len(accounts) > MANY_ACCOUNTS:
            gc.enable()
        for name, each in accounts.items():
            try:
                shown = _read(host, each, free)
            except Exception as error:  # noqa: BLE001 - any error is shown
                failed = True
                text = error_text(error)
                print_error(text if name == each.exchange else f"{name}: {text}")
                if verbose:
                    err().print(redacted(traceback.format_exc()), markup=False)
            else:
                structures[name] = shown.structure
                if not as_json:
                    _show(name, each.exchange, shown, precise=precise)
    if as_json and structures:
        print_json(structures if len(accounts) > 1 else next(iter(structures.values())))
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A balance, the meaning of ``free``, and the account's summary or why there is none."""

    structure: dict[str, Any]
    policy: str
    summary: AccountSummary | Exception | None


def _read(host: ExchangeHost, account: Account, free: FreePolicy | None) -> _Shown:
    exchange = host.create(account.exchange, {**account.config, "number": str})
    try:
        if account.exchange not in VENUES:
            if free is not None:
                raise UsageError(
                    f"--free works only with {', '.join(VENUES)}, not with {account.exchange}"
                )
            return _Shown(dict(exchange.fetch_balance()), "", None)
        structure = dict(exchange.fetch_balance({"free": free}))
        return _Shown(structure, free or exchange.options["free"], _summary(exchange, structure))
    finally:
        if hasattr(exchange, "close"):
            exchange.close()


def _summary(exchange: Any, structure: dict[str, Any]) -> AccountSummary | Exception:
    from ccxt.base.errors import BadResponse  # noqa: PLC0415 - slow

    try:
        summary: AccountSummary = exchange.parse_account_summary(structure["info"])
    except BadResponse as error:
        unreadable: Exception = error  # the balance itself was read
        return unreadable
    return summary


def _show(name: str, exchange_id: str, shown: _Shown, *, precise: bool) -> None:
    from sunx_adapter.cli.table import print_balance  # noqa: PLC0415 - not for JSON

    print_balance(name, exchange_id, shown.structure, shown.policy, shown.summary, precise=precise)
