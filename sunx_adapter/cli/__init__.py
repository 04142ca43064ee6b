"""The command line: ``sunx-adapter exchanges | balance | watch | fleet | doctor | sandbox``.

Each command has its own module. Commands read keys, call the library and print the result; the
library does everything else. Slow imports are made only by the commands that need them.
"""

import io
import sys
from typing import Annotated

import typer

from sunx_adapter import __version__
from sunx_adapter.cli import balance, doctor, exchanges, fleet, sandbox, watch
from sunx_adapter.cli.options import Command, Group, examples
from sunx_adapter.cli.output import os_error_text

__all__ = ["app", "run"]

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=examples(
        "sunx-adapter balance --sandbox",
        "sunx-adapter watch --sandbox",
        "sunx-adapter doctor -e sunx",
        "sunx-adapter --install-completion",
    ),
)


def run() -> None:
    """Run the command line; the exit status is 0 only if everything succeeded."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack some characters
    try:
        app(prog_name="sunx-adapter")
    except OSError as error:
        sys.exit(f"error: {os_error_text(error)}")  # standard output is full or closed


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"sunx-adapter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    r"""Exact futures balances from SunX and HTX (v5), through ccxt's fetch_balance().

    Set your API keys in environment variables: [bold]SUNX_API_KEY[/] and
    [bold]SUNX_API_SECRET[/] (or [bold]SUNX_PRIVATE_KEY_FILE[/] for an Ed25519 key); for HTX the
    same with [bold]HTXFUTURES_[/]. Or put them in a TOML file and set [bold]SUNX_ADAPTER_KEYS[/] to
    its path. It has one table per account: \[sunx], \[htxfutures], or any name with a line like
    [bold]exchange = "sunx"[/].

    To try it without keys: [bold]sunx-adapter balance --sandbox[/]
    """


for _module, _command in (
    (exchanges, exchanges.exchanges),
    (balance, balance.balance),
    (watch, watch.watch),
    (fleet, fleet.fleet),
    (doctor, doctor.doctor),
    (sandbox, sandbox.sandbox),
):
    app.command(cls=Command, epilog=_module.EPILOG)(_command)
