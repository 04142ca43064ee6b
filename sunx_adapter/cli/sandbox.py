"""``sunx-adapter sandbox``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer evaluates annotations
from typing import TYPE_CHECKING, Annotated

import typer

from sunx_adapter.cli.options import examples
from sunx_adapter.cli.output import log_to_stderr, os_error_text, print_error
from sunx_adapter.sandbox.faults import fault_kinds
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from sunx_adapter.sandbox import Sandbox


def _faults_help() -> str:
    rules = (
        f"  [cyan]{rule.usage}[/]: {rule.help}".replace("[=", r"\[=") for rule in fault_kinds()
    )
    return "\n".join((r"[bold]Faults[/] (KIND\[=PARAMETER]\[@PROBABILITY])", *rules))


def _kinds(incomplete: str) -> list[str]:
    return [rule.kind for rule in fault_kinds() if rule.kind.startswith(incomplete)]


EPILOG = "\n\n".join(
    (
        examples(
            "sunx-adapter sandbox --port 8080 --verbose",
            "sunx-adapter sandbox --fault reset@0.2 --fault code=1004@0.1 --seed 1",
            "sunx-adapter sandbox --show-accounts > accounts.json",
            "sunx-adapter sandbox --accounts accounts.json",
        ),
        _faults_help(),
    )
)


def sandbox(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = 0,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    accounts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with accounts to serve.")
    ] = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="FAULT",
            help="Simulate a fault (repeatable): 'reset@0.2' resets 20 % of the balance requests. "
            "See the list of faults below.",
            autocompletion=_kinds,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="With --fault: the same seed gives the same faults for the same sequence of "
            "requests."
        ),
    ] = None,
    show_accounts: Annotated[
        bool,
        typer.Option(
            "--show-accounts", help="Print the accounts as a file for --accounts, and exit."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log requests and faults.")] = False,
) -> None:
    """Run a local venue that checks keys and signatures like the real ones, until Ctrl-C."""
    from sunx_adapter.sandbox import (  # noqa: PLC0415 - slow
        DEFAULT_ACCOUNTS,
        AccountsFileError,
        Sandbox,
        dump_accounts,
        load_accounts,
    )

    if verbose:
        log_to_stderr("sunx_adapter.sandbox")
    try:
        known = load_accounts(accounts) if accounts else DEFAULT_ACCOUNTS
        if show_accounts:
            typer.echo(dump_accounts(known))
            return
        local = Sandbox(known, host=host, port=port, faults=faults or (), seed=seed)
        local.start()
    except (AccountsFileError, OSError, ValueError) as error:
        print_error(os_error_text(error))
        raise typer.Exit(1) from None
    with local:
        _print_usage(local)
        try:
            local.wait()
        except KeyboardInterrupt:
            typer.echo("\nthe sandbox has stopped", err=True)


def _print_usage(local: Sandbox) -> None:
    """Print how to use the sandbox, in lines to copy."""
    address = local.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104
    stream = address.replace("http", "ws", 1)
    config = local.config("sunx")
    config["urls"] = {"api": {"rest": address, "stream": stream}}
    typer.echo(f"the sandbox serves SunX and HTX at {address} (stop it with Ctrl-C)\n")
    if "secret" in config:
        typer.echo("Use it on the command line:")
        for prefix in (venue.env_prefix for venue in VENUES.values()):
            typer.echo(
                f"  export {prefix}_REST_URL={address} {prefix}_STREAM_URL={stream} "
                f"{prefix}_API_KEY={config['apiKey']} {prefix}_API_SECRET={config['secret']}"
            )
    typer.echo(f"Use it in Python:\n  Sunx({config!r})\n")
    typer.echo(f"Accounts: {', '.join(account.name for account in local.accounts)}")
