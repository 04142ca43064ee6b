"""The command line: ``sunx-adapter exchanges | balance | watch | doctor | sandbox``.

It only reads keys, calls the library and shows what came of it; every rule is the library's.
"""

import io
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sunx_adapter import __version__
from sunx_adapter.host import ExchangeHost, FoundOffer, HostError
from sunx_adapter.keys import (
    KEYS_FILE_VARIABLE,
    KeysError,
    config_from_environment,
    environment_prefix,
    key_sources,
)
from sunx_adapter.sandbox.faults import fault_kinds
from sunx_adapter.show import amount_text, bar, state_text
from sunx_adapter.text import printable
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sunx_adapter.doctor import Finding
    from sunx_adapter.sandbox import Sandbox

MAX_WIDTH = 1000
SANDBOX_LIFE_SECONDS = 0.5

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


@cache
def out() -> "Console":
    """Standard output. Like all that is heavy, rich is imported when something is drawn."""
    from rich.console import Console  # noqa: PLC0415

    return Console()


@cache
def err() -> "Console":
    """Standard error."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True)


def escape(text: str) -> str:
    """A text in which nothing is markup."""
    from rich.markup import escape  # noqa: PLC0415

    return escape(text)


class Free(StrEnum):
    """What ``free`` means; the names of the library's policies."""

    margin = "margin"
    available = "available"
    withdrawable = "withdrawable"


ExchangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "-e",
        "--exchange",
        metavar="ID",
        help="Only this exchange (repeatable). Default: those that there are keys for; the doctor "
        "looks at all.",
    ),
]
SandboxOption = Annotated[
    bool, typer.Option("--sandbox", help="Use a local sandbox instead; needs no keys.")
]
AccountOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="With --sandbox: which of its accounts.")
]


class UsageError(Exception):
    """Something to tell the user in one or two lines."""


def main() -> None:
    """Run the command line; the exit status is 0 only if all that was asked for was done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character or two
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: {_told(error)}")  # standard output is full or gone


def _version(shown: bool) -> None:
    if shown:
        out().print(f"sunx-adapter {__version__}", highlight=False)
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
        out().print_json(data={"exchanges": rows, "problems": [str(p) for p in host.problems]})
    else:
        out().print(_exchanges_table(shown))
        if hidden := len(offers) - len(shown):
            out().print(f"and {hidden} exchanges of ccxt; list them with --all", style="dim")
    for problem in host.problems:
        _say_error(str(problem))
    if host.problems:
        raise typer.Exit(1)


def _exchanges_table(offers: list[FoundOffer]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

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
    exchange: ExchangesOption = None,
    sandbox: SandboxOption = False,
    account: AccountOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the unified balance and nothing else; of several exchanges, by id.",
        ),
    ] = False,
    free: Annotated[
        Free | None,
        typer.Option(
            help="What 'free' means: margin that can still be used, the venue's 'available' "
            "(cash), or what can be withdrawn. Default: as the keys file says, else margin."
        ),
    ] = None,
    precise: Annotated[
        bool, typer.Option("--precise", help="All digits: amounts as text instead of floats.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log requests (masked) and show tracebacks.")
    ] = False,
) -> None:
    """Read balances and show them. The exit status is 0 only if all of them were read."""
    if verbose:
        logging.basicConfig(stream=sys.stderr)
        logging.getLogger("sunx_adapter").setLevel(logging.DEBUG)
    host = ExchangeHost()
    structures: dict[str, Any] = {}
    failed = False
    with ExitStack() as stack:
        try:
            configs = _configs(host, exchange, _opened_sandbox(stack, sandbox, account), account)
        except (UsageError, KeysError, HostError, ValueError) as error:
            _say_error(str(error))
            raise typer.Exit(1) from None
        for exchange_id, config in configs.items():
            try:
                shown = _read(host, exchange_id, config, free, as_json=as_json, precise=precise)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
                failed = True
                _say_error(_explained(error))
                if verbose:
                    err().print(_redacted(traceback.format_exc()), markup=False, highlight=False)
            else:
                structures[exchange_id] = shown.structure
                if not as_json:
                    _show_balance(exchange_id, shown, precise)
    if as_json and structures:
        single = len(configs) == 1
        # What another exchange gives may not be JSON's: as text then.
        result = next(iter(structures.values())) if single else structures
        typer.echo(json.dumps(result, indent=2, default=str))
    if failed:
        raise typer.Exit(1)


def _opened_sandbox(
    stack: ExitStack, wanted: bool, account: str | None, life: float | None = None
) -> "Sandbox | None":
    if not wanted:
        if account is not None:
            raise UsageError("--account names an account of the sandbox: add --sandbox")
        return None
    from sunx_adapter.sandbox import Sandbox  # noqa: PLC0415 - only now, for a quick start

    return stack.enter_context(Sandbox(life=life))


def _configs(
    host: ExchangeHost, wanted: list[str] | None, sandbox: "Sandbox | None", account: str | None
) -> dict[str, dict[str, Any]]:
    """Per exchange to be read its configuration."""
    if sandbox is not None:
        return {name: sandbox.config(name, account) for name in wanted or VENUES}
    for name in wanted or ():
        host.offer(name)  # an unknown id is told before its keys are missed
    configs = {name: config_from_environment(name) for name in wanted or VENUES}
    found = {name: config for name, config in configs.items() if not _missing_keys(name, config)}
    if lacking := [name for name in configs if name not in found and (wanted or not found)]:
        raise UsageError(
            "\n".join(_missing_keys(name, configs[name]) for name in lacking)
            + f"\nKeys may also stand in a TOML file that {KEYS_FILE_VARIABLE} names, in a table "
            "per exchange.\nTo try it without keys: sunx-adapter balance --sandbox"
        )
    return found


def _missing_keys(exchange_id: str, config: Mapping[str, Any]) -> str:
    prefix = environment_prefix(exchange_id)
    missing = [] if "apiKey" in config else [f"{prefix}_API_KEY"]
    if "secret" not in config and "privateKey" not in config:
        missing.append(f"{prefix}_API_SECRET (or {prefix}_PRIVATE_KEY_FILE)")
    return f"no keys for {exchange_id}: set {' and '.join(missing)}" if missing else ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A balance and what is told beside it."""

    structure: dict[str, Any]
    free: str
    state: str


def _read(
    host: ExchangeHost,
    exchange_id: str,
    config: dict[str, Any],
    free: Free | None,
    *,
    as_json: bool,
    precise: bool,
) -> Shown:
    number = {"number": str} if precise or not as_json else {}
    exchange = host.create(exchange_id, {**config, **number})
    try:
        if exchange_id not in VENUES:
            if free is not None:
                raise UsageError(f"--free is for {', '.join(VENUES)}, not for {exchange_id}")
            return Shown(exchange.fetch_balance(), "free", "")
        structure = exchange.fetch_balance({"free": free.value if free else None})
        policy = free.value if free else exchange.options["free"]
        state = "" if as_json else _state(exchange, structure["info"])
        return Shown(structure, f"free ({policy})", state)
    finally:
        if hasattr(exchange, "close"):
            exchange.close()


def _state(exchange: Any, info: Mapping[str, Any]) -> str:
    from ccxt.base.errors import BadResponse  # noqa: PLC0415 - for a quick start

    try:
        return state_text(exchange.parse_account_summary(info))
    except BadResponse as error:
        # The balance is right all the same.
        return f"[yellow]state unknown[/] ({escape(printable(str(error)))})"


def _show_balance(exchange_id: str, shown: Shown, precise: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.measure import Measurement  # noqa: PLC0415

    structure = shown.structure
    heading = f"[bold]{escape(exchange_id)}[/]  {shown.state}".rstrip()
    out().print(f"{heading}  [dim]{_moment(structure)}[/]", highlight=False, soft_wrap=True)
    if not structure["total"]:
        out().print("the venue says that the account holds no currency\n", style="dim")
        return
    table = _balance_table(shown, precise, with_bar=True)
    if Measurement.get(out(), out().options.update(width=MAX_WIDTH), table).maximum > out().width:
        table = _balance_table(shown, precise, with_bar=False)
    # No figure is ever cut to the terminal's width: rather a long line.
    Console(width=MAX_WIDTH).print(table, crop=False, soft_wrap=True, highlight=False)
    out().print()


def _balance_table(shown: Shown, precise: bool, *, with_bar: bool) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    structure = shown.structure
    debts = structure.get("debt", {})
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("currency")
    for heading in (shown.free, "used", "total"):
        table.add_column(heading, justify="right")
    if with_bar:
        table.add_column("in use")
    if debts:
        table.add_column("debt", justify="right", style="red")
    for code in structure["total"]:
        free, used, total = (structure[code].get(view) for view in ("free", "used", "total"))
        cells = [escape(printable(code)), amount_text(free, precise=precise)]
        cells += [amount_text(used, precise=precise, up=True), amount_text(total, precise=precise)]
        cells += [bar(used, total)] if with_bar else []
        if debts:
            owed = amount_text(debts[code], precise=precise, up=True) if code in debts else ""
            cells.append(owed)
        table.add_row(*cells)
    return table


def _moment(structure: Mapping[str, Any]) -> str:
    timestamp = structure.get("timestamp")
    if timestamp is None:
        return "the venue told no time"
    moment = datetime.fromtimestamp(timestamp / 1000, UTC)
    return f"as of {moment:%Y-%m-%d %H:%M:%S} UTC"


def _explained(error: Exception) -> str:
    # Other exchanges' exceptions may quote a signed address.
    text = _redacted(str(error))
    return text if isinstance(error, HostError | UsageError) else f"{type(error).__name__}: {text}"


def _redacted(text: str) -> str:
    from sunx_adapter.exchange.redaction import cleaned  # noqa: PLC0415 - for a quick start

    return "\n".join(map(cleaned, text.splitlines()))


def _told(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _say_error(text: str) -> None:
    lines = "\n".join(map(printable, text.splitlines()))
    err().print(f"[red]error:[/] {escape(lines)}", highlight=False, soft_wrap=True)


# -- watch ----------------------------------------------------------------------------------


@app.command()
def watch(
    exchange: ExchangesOption = None,
    sandbox: SandboxOption = False,
    account: AccountOption = None,
    free: Annotated[Free | None, typer.Option(help="What 'free' means, as for balance.")] = None,
    changes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after so many changes.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a line of JSON for each change.")
    ] = False,
) -> None:
    """Show balances as they change, until Ctrl-C: pushed by the venue, or else polled."""
    import asyncio  # noqa: PLC0415 - for a quick start of the others

    from sunx_adapter import live  # noqa: PLC0415

    host = ExchangeHost()
    with ExitStack() as stack:
        try:
            if not as_json and not out().is_terminal:
                raise UsageError("the live view needs a terminal; for anything else add --json")
            local = _opened_sandbox(stack, sandbox, account, life=SANDBOX_LIFE_SECONDS)
            configs = _configs(host, exchange, local, account)
            params = {"free": free.value} if free else {}
            ended = asyncio.run(
                live.watch(host, configs, params, as_json=as_json, changes=changes, console=out())
            )
        except (UsageError, KeysError, HostError, ValueError) as error:
            _say_error(str(error))
            raise typer.Exit(1) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
            _say_error(_explained(error))
            raise typer.Exit(1) from None
    for problem in ended:
        _say_error(_redacted(problem))
    if ended:
        raise typer.Exit(1)


# -- doctor ---------------------------------------------------------------------------------

MARKS = {
    "ok": "[green]✔[/]",
    "warning": "[yellow]![/]",
    "failed": "[red]✘[/]",
    "skipped": "[dim]-[/]",
}


@app.command()
def doctor(
    exchange: ExchangesOption = None,
    sandbox: SandboxOption = False,
    account: AccountOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Go through what can be wrong, in order: keys, network, clock, permissions, account.

    Without keys it checks what needs none. The exit status is 1 if anything fails.
    """
    failed = False
    report: dict[str, list[dict[str, str]]] = {}
    with ExitStack() as stack:
        try:
            local = _opened_sandbox(stack, sandbox, account)
        except UsageError as error:
            _say_error(str(error))
            raise typer.Exit(1) from None
        for exchange_id in exchange or VENUES:
            if not as_json:
                out().print(f"[bold]{escape(exchange_id)}[/]")
            for finding in _findings(exchange_id, local, account):
                failed |= finding.status == "failed"
                report.setdefault(exchange_id, []).append(asdict(finding))
                if not as_json:
                    _show_finding(finding)
    if as_json:
        out().print_json(data=report)
    if failed:
        raise typer.Exit(1)


def _findings(
    exchange_id: str, local: "Sandbox | None", account: str | None
) -> "Iterator[Finding]":
    from sunx_adapter.doctor import Finding, diagnose  # noqa: PLC0415 - for a quick start

    if exchange_id not in VENUES:
        advice = f"only {', '.join(VENUES)} are looked at"
        yield Finding("exchange", "failed", f"{exchange_id!r} is none of this package's", advice)
        return
    try:
        if local is not None:
            config, sources = local.config(exchange_id, account), ["the sandbox"]
        else:
            config, sources = config_from_environment(exchange_id), key_sources(exchange_id)
        options = {**config.get("options", {}), "maxRetriesOnFailure": 0}
        made: Any = ExchangeHost().create(exchange_id, {**config, "options": options})
    except (KeysError, ValueError) as error:
        yield Finding("keys", "failed", str(error))
    except Exception as error:  # noqa: BLE001 - a setting of the keys file, most likely
        yield Finding("settings", "failed", _explained(error))
    else:
        with made:
            yield from diagnose(made, sources)


def _show_finding(finding: "Finding") -> None:
    advice = f" → {escape(finding.advice)}" if finding.advice else ""
    out().print(
        f"  {MARKS[finding.status]} {finding.check}: {escape(finding.seen)}{advice}",
        highlight=False,
    )


# -- sandbox --------------------------------------------------------------------------------


FAULTS_HELP = "\n\n".join(
    [r"[bold]Faults[/], written KIND\[=PARAMETER]\[@PROBABILITY]:"]
    + [f"[cyan]{rule.usage}[/]: {rule.sentence}".replace("[=", r"\[=") for rule in fault_kinds()]
)


@app.command(epilog=FAULTS_HELP)
def sandbox(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    accounts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with the accounts to serve.")
    ] = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="FAULT",
            help="Go wrong on purpose (repeatable): 'reset@0.2' does so for a fifth of the "
            "requests. The faults are listed below.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --fault: draw the same faults for the same order of requests."),
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
        local = Sandbox(known, host=host, port=port, faults=faults or (), seed=seed)
        local.start()
    except (AccountsFileError, OSError, ValueError) as error:
        _say_error(_told(error))
        raise typer.Exit(1) from None
    with local:
        address = local.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104
        config = local.config("sunx")
        typer.echo(f"the sandbox serves SunX and HTX at {address} (Ctrl-C ends it)\n")
        if "secret" in config:
            typer.echo("Point the command line at it:")
            for prefix in (venue.env_prefix for venue in VENUES.values()):
                typer.echo(
                    f"  export {prefix}_REST_URL={address} "
                    f"{prefix}_STREAM_URL={address.replace('http', 'ws', 1)} "
                    f"{prefix}_API_KEY={config['apiKey']} "
                    f"{prefix}_API_SECRET={config['secret']}"
                )
        typer.echo(f"Point an exchange in Python at it:\n  Sunx({config!r})\n")
        typer.echo(f"Accounts: {', '.join(account.name for account in local.accounts)}")
        try:
            local.wait()
        except KeyboardInterrupt:
            typer.echo("\nthe sandbox has ended", err=True)
