"""``sunx-adapter doctor``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from sunx_adapter.cli.accounts import opened_sandbox, sandbox_accounts
from sunx_adapter.cli.options import (
    AccountOption,
    ExchangesOption,
    JsonOption,
    SandboxOption,
    examples,
)
from sunx_adapter.cli.output import error_text, escape, out, print_error, print_json
from sunx_adapter.host import ExchangeHost
from sunx_adapter.keys import (
    Account,
    KeysError,
    account_from_environment,
    account_names,
    key_sources,
    missing_keys,
)
from sunx_adapter.venue import VENUES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sunx_adapter.doctor import Finding

MARKS = {
    "ok": "[green]✔[/]",
    "warning": "[yellow]![/]",
    "failed": "[red]✘[/]",
    "skipped": "[dim]-[/]",
}

EPILOG = examples("sunx-adapter doctor", "sunx-adapter doctor -e sunx --json")


def doctor(
    exchange: ExchangesOption = None,
    account: AccountOption = None,
    sandbox: SandboxOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find out why a balance cannot be read: check keys, network, clock, permissions, account.

    By default all accounts with keys are checked. With -e, an exchange is checked as far as
    possible even if it has no keys. The exit status is 1 if a check fails.
    """
    failed = False
    report: dict[str, list[dict[str, str]]] = {}
    with ExitStack() as stack:
        try:
            local = opened_sandbox(stack, sandbox)
            given = sandbox_accounts(local, exchange, account) if local else None
            names = list(given or _names(exchange, account))
        except (KeysError, ValueError) as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        for name in names:
            if not as_json:
                out().print(f"[bold]{escape(name)}[/]")
            for finding in _findings(name, given[name] if given else None):
                failed |= finding.status == "failed"
                report.setdefault(name, []).append(asdict(finding))
                if not as_json:
                    _show(finding)
    if as_json:
        print_json(report)
    if failed:
        raise typer.Exit(1)


def _names(exchanges: list[str] | None, account: str | None) -> list[str]:
    """The names of the accounts to check; an exchange named with -e needs no keys."""
    if account is not None:
        return [account]
    if exchanges:
        return exchanges
    names = account_names()
    if not names:
        venues = (f"{name}: set {' and '.join(missing_keys(name, {}))}" for name in VENUES)
        raise ValueError(
            "no keys found. For\n  "
            + "\n  ".join(venues)
            + "\nTo check the connection without keys: sunx-adapter doctor -e sunx"
        )
    return names


def _findings(name: str, given: Account | None) -> Iterator[Finding]:
    from sunx_adapter.doctor import Finding, diagnose  # noqa: PLC0415 - slow

    try:
        account = given or account_from_environment(name)
        sources = ["the sandbox"] if given else key_sources(name)
        if account.exchange not in VENUES:
            advice = f"the doctor checks only {', '.join(VENUES)}"
            seen = f"{account.exchange!r} is not an exchange of this package"
            yield Finding("exchange", "failed", seen, advice)
            return
        options = {**account.config.get("options", {}), "maxRetriesOnFailure": 0}
        made: Any = ExchangeHost().create(account.exchange, {**account.config, "options": options})
    except (KeysError, ValueError) as error:
        yield Finding("keys", "failed", str(error))
    except Exception as error:  # noqa: BLE001 - probably a setting in the keys file
        yield Finding("settings", "failed", error_text(error))
    else:
        with made:
            yield from diagnose(made, sources, name)


def _show(finding: Finding) -> None:
    # Not wrapped, so that a command in a line can be copied.
    line = f"  {MARKS[finding.status]} {finding.check}: {escape(finding.seen)}"
    out().print(line, soft_wrap=True)
    if finding.advice:
        out().print(f"    → {escape(finding.advice)}", soft_wrap=True)
