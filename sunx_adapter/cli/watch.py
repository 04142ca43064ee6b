"""``sunx-adapter watch``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from sunx_adapter.cli.accounts import chosen_accounts, opened_sandbox, sandbox_accounts
from sunx_adapter.cli.options import (
    AccountOption,
    ExchangesOption,
    FreeOption,
    SandboxOption,
    examples,
)
from sunx_adapter.cli.output import UsageError, error_text, out, print_error, redacted
from sunx_adapter.host import ExchangeHost, HostError
from sunx_adapter.keys import KeysError

SANDBOX_LIFE_SECONDS = 0.5

EPILOG = examples(
    "sunx-adapter watch --sandbox",
    "sunx-adapter watch -e sunx --free withdrawable",
    "sunx-adapter watch -e sunx --json --changes 10",
)


def watch(
    exchange: ExchangesOption = None,
    account: AccountOption = None,
    sandbox: SandboxOption = False,
    free: FreeOption = None,
    changes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Exit after N changes.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print each change as a line of JSON, with exact amounts as text."
        ),
    ] = False,
) -> None:
    """Show balances as they change, until Ctrl-C: pushed by the venue, or else polled."""
    import asyncio  # noqa: PLC0415 - slow

    from sunx_adapter.cli import live  # noqa: PLC0415 - slow

    host = ExchangeHost()
    with ExitStack() as stack:
        try:
            if not as_json and not out().is_terminal:
                raise UsageError("the live view needs a terminal; add --json for a file or a pipe")
            local = opened_sandbox(stack, sandbox, SANDBOX_LIFE_SECONDS)
            accounts = (
                sandbox_accounts(local, exchange, account)
                if local
                else chosen_accounts(host, exchange, account)
            )
            ended = asyncio.run(
                live.watch(host, accounts, free, as_json=as_json, changes=changes, console=out())
            )
        except (UsageError, KeysError, HostError, ValueError) as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise  # the reader of our output has closed it
        except Exception as error:  # noqa: BLE001 - any error is shown
            print_error(error_text(error))
            raise typer.Exit(1) from None
    for problem in ended:
        print_error(redacted(problem))
    if ended:
        raise typer.Exit(1)
