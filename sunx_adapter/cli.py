"""The command line: ``sunx-adapter exchanges | balance | sandbox``.

It only reads keys, calls the library and shows what came of it; every rule is the library's.
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sunx_adapter import __version__
from sunx_adapter.host import ExchangeHost, FoundOffer, HostError
from sunx_adapter.keys import (
    KEYS_FILE_VARIABLE,
    KeysError,
    config_from_environment,
    environment_prefix,
)
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from sunx_adapter.protocol.account import AccountSummary
    from sunx_adapter.sandbox import Sandbox

BAR_WIDTH = 12

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
out = Console()
err = Console(stderr=True)


class Free(StrEnum):
    """What ``free`` means; the names of the library's policies."""

    margin = "margin"
    available = "available"
    withdrawable = "withdrawable"


class UsageError(Exception):
    """Something to tell the user in one or two lines."""


def main() -> None:
    """Run the command line; the exit status is 0 only if all that was asked for was done."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


def _version(shown: bool) -> None:
    if shown:
        out.print(f"sunx-adapter {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    r"""Exact futures balances from SunX and HTX (v5), through ccxt's fetch_balance().

    Keys come from the environment: [bold]SUNX_API_KEY[/] and [bold]SUNX_API_SECRET[/] (or
    [bold]SUNX_PRIVATE_KEY_FILE[/], an Ed25519 key), and the same with [bold]HTXFUTURES_[/]; or from
    a TOML file with tables \[sunx] and \[htxfutures] that [bold]SUNX_ADAPTER_KEYS[/] names.

    To try it without keys: [bold]sunx-adapter balance --sandbox[/]
    """


# -- exchanges ------------------------------------------------------------------------------


@app.command()
def exchanges(
    everything: Annotated[
        bool, typer.Option("--all", help="List ccxt's own exchanges one by one too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the exchanges that plugins offer, and plugins that could not be used."""
    host = ExchangeHost()
    offers = host.offers()
    shown = [found for found in offers if everything or found.plugin != "ccxt"]
    if as_json:
        rows = [{"id": f.offer.id, "name": f.offer.name, "plugin": f.plugin} for f in shown]
        out.print_json(data={"exchanges": rows, "problems": [str(p) for p in host.problems]})
    else:
        out.print(_exchanges_table(shown))
        if hidden := len(offers) - len(shown):
            out.print(f"and {hidden} exchanges of ccxt; list them with --all", style="dim")
    for problem in host.problems:
        _say_error(str(problem))
    if host.problems:
        raise typer.Exit(1)


def _exchanges_table(offers: list[FoundOffer]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("id", "name", "plugin", "what works"):
        table.add_column(heading)
    for found in offers:
        works = ", ".join(sorted(name for name, works in found.offer.has.items() if works))
        table.add_row(found.offer.id, found.offer.name, found.plugin, works)
    return table


# -- balance --------------------------------------------------------------------------------


@app.command()
def balance(
    exchange: Annotated[
        list[str] | None,
        typer.Option(
            "-e",
            "--exchange",
            metavar="ID",
            help="Read this exchange (repeatable). Default: those that there are keys for.",
        ),
    ] = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Read from a local sandbox; needs no keys.")
    ] = False,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --sandbox: which of its accounts.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the unified balance and nothing else; of several exchanges, by id.",
        ),
    ] = False,
    free: Annotated[
        Free,
        typer.Option(
            help="What 'free' means: margin that can still be used, the venue's 'available' "
            "(cash), or what can be withdrawn."
        ),
    ] = Free.margin,
    precise: Annotated[
        bool, typer.Option("--precise", help="All digits: amounts as text instead of floats.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log the traffic (masked) and show tracebacks.")
    ] = False,
) -> None:
    """Read balances and show them. The exit status is 0 only if all of them were read."""
    if verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    host = ExchangeHost()
    structures: dict[str, Any] = {}
    failed = False
    with ExitStack() as stack:
        try:
            configs = _configs(exchange, _opened_sandbox(stack, sandbox, account), account)
        except (UsageError, KeysError, ValueError) as error:
            _say_error(str(error))
            raise typer.Exit(1) from None
        for exchange_id, config in configs.items():
            try:
                structure, summary = _read(
                    host, exchange_id, config, free=free, as_text=precise or not as_json
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
                failed = True
                _say_error(_explained(error))
                if verbose:
                    err.print(traceback.format_exc(), markup=False, highlight=False)
            else:
                structures[exchange_id] = structure
                if not as_json:
                    _show_balance(exchange_id, structure, summary, free, precise)
    if as_json and structures:
        single = len(configs) == 1
        out.print(
            json.dumps(next(iter(structures.values())) if single else structures, indent=2),
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    if failed:
        raise typer.Exit(1)


def _opened_sandbox(stack: ExitStack, wanted: bool, account: str | None) -> "Sandbox | None":
    if not wanted:
        if account is not None:
            raise UsageError("--account names an account of the sandbox: add --sandbox")
        return None
    from sunx_adapter.sandbox import Sandbox  # noqa: PLC0415 - only now, for a quick start

    return stack.enter_context(Sandbox())


def _configs(
    wanted: list[str] | None, sandbox: "Sandbox | None", account: str | None
) -> dict[str, dict[str, Any]]:
    """Per exchange to be read its configuration."""
    if sandbox is not None:
        return {name: sandbox.config(name, account) for name in wanted or VENUES}
    configs = {name: config_from_environment(name) for name in wanted or VENUES}
    found = {name: config for name, config in configs.items() if _has_keys(config)}
    if missing := [name for name in configs if name not in found and (wanted or not found)]:
        variables = "; or ".join(
            f"{prefix}_API_KEY and {prefix}_API_SECRET (or {prefix}_PRIVATE_KEY_FILE)"
            for prefix in map(environment_prefix, missing)
        )
        raise UsageError(
            f"no keys for {' or '.join(missing)}. Set {variables}; or name a file with them in "
            f"{KEYS_FILE_VARIABLE}.\nTo try it without keys: sunx-adapter balance --sandbox"
        )
    return found


def _has_keys(config: Mapping[str, Any]) -> bool:
    return "apiKey" in config and ("secret" in config or "privateKey" in config)


def _read(
    host: ExchangeHost, exchange_id: str, config: dict[str, Any], *, free: Free, as_text: bool
) -> tuple[dict[str, Any], "AccountSummary | None"]:
    number = {"number": str} if as_text else {}
    exchange = host.create(exchange_id, {**config, **number})
    try:
        if exchange_id not in VENUES:
            return exchange.fetch_balance(), None
        structure = exchange.fetch_balance({"free": free.value})
        return structure, exchange.parse_account_summary(structure["info"])
    finally:
        if hasattr(exchange, "close"):
            exchange.close()


def _show_balance(
    exchange_id: str,
    structure: dict[str, Any],
    summary: "AccountSummary | None",
    free: Free,
    precise: bool,
) -> None:
    debts = structure.get("debt", {})
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("currency")
    for heading in (f"free ({free})", "used", "total"):
        table.add_column(heading, justify="right")
    table.add_column("in use")
    if debts:
        table.add_column("debt", justify="right", style="red")
    for code in structure["total"]:
        figures = [structure[code][view] for view in ("free", "used", "total")]
        shown = [_amount(figure, precise) for figure in figures]
        debt = [_amount(debts[code], precise) if code in debts else ""] if debts else []
        table.add_row(code, *shown, _bar(figures[1], figures[2]), *debt)
    state = f"  {_state(summary)}" if summary else ""
    out.print(f"[bold]{escape(exchange_id)}[/]{state}  [dim]{_moment(structure)}[/]")
    if structure["total"]:
        out.print(table)
    else:
        out.print("the venue says that the account holds no currency", style="dim")
    out.print()


def _amount(figure: str, precise: bool) -> str:
    """All digits if precise; else cut (never rounded up) to 8 places, which is then marked."""
    whole, _, fraction = figure.partition(".")
    if precise or len(fraction) <= 8:  # noqa: PLR2004
        return f"{Decimal(whole):,}{'.' + fraction if fraction else ''}"
    return f"{Decimal(whole):,}.{fraction[:8]}…"


def _bar(used: str, total: str) -> str:
    if Decimal(total) <= 0:
        return "[red]all[/]" if Decimal(used) > 0 else ""
    share = min(max(Decimal(used) / Decimal(total), Decimal(0)), Decimal(1))
    filled = round(share * BAR_WIDTH)
    colour = "green" if share < Decimal("0.5") else "yellow" if share < Decimal("0.8") else "red"
    return f"[{colour}]{'█' * filled}[/][dim]{'░' * (BAR_WIDTH - filled)}[/] {share:.0%}"


def _state(summary: "AccountSummary") -> str:
    state = summary.state
    forbidden = [
        name
        for name, permitted in (
            ("trading", state.permits_trading),
            ("transfers in", state.permits_transfers_in),
            ("transfers out", state.permits_transfers_out),
        )
        if not permitted
    ]
    if not forbidden:
        return f"[green]{state.name}[/]"
    return f"[red]{state.name}[/]: no {', no '.join(forbidden)}"


def _moment(structure: dict[str, Any]) -> str:
    timestamp = structure["timestamp"]
    if timestamp is None:
        return "the venue told no time"
    moment = datetime.fromtimestamp(timestamp / 1000, UTC)
    return f"as of {moment:%Y-%m-%d %H:%M:%S} UTC"


def _explained(error: Exception) -> str:
    if isinstance(error, HostError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _told(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _say_error(text: str) -> None:
    err.print(f"[red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


# -- sandbox --------------------------------------------------------------------------------


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    accounts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with the accounts to serve.")
    ] = None,
    show_accounts: Annotated[
        bool,
        typer.Option(
            "--show-accounts", help="Print the accounts as such a file, to start from, and end."
        ),
    ] = False,
) -> None:
    """Serve a local venue that checks keys and signatures as the real ones do, until Ctrl-C."""
    from sunx_adapter.sandbox import (  # noqa: PLC0415 - only now, for a quick start
        DEFAULT_ACCOUNTS,
        AccountsFileError,
        Sandbox,
        dump_accounts,
        load_accounts,
    )

    try:
        known = load_accounts(accounts) if accounts else DEFAULT_ACCOUNTS
        if show_accounts:
            typer.echo(dump_accounts(known))
            return
        local = Sandbox(known, host=host, port=port)
        local.start()
    except (AccountsFileError, OSError, ValueError) as error:
        _say_error(_told(error))
        raise typer.Exit(1) from None
    with local:
        config = local.config("sunx")
        typer.echo(f"the sandbox serves SunX and HTX at {local.url} (Ctrl-C ends it)\n")
        typer.echo("Point the command line at it:")
        for prefix in (venue.env_prefix for venue in VENUES.values()):
            typer.echo(
                f"  export {prefix}_REST_URL={local.url} {prefix}_API_KEY={config['apiKey']} "
                f"{prefix}_API_SECRET={config.get('secret', '')}"
            )
        typer.echo(f"or an exchange in Python:\n  Sunx({config!r})\n")
        typer.echo(f"Accounts: {', '.join(account.name for account in local.accounts)}")
        try:
            local.wait()
        except KeyboardInterrupt:
            typer.echo("\nthe sandbox has ended", err=True)
