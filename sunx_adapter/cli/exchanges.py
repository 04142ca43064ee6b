"""``sunx-adapter exchanges``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sunx_adapter.cli.options import JsonOption, examples
from sunx_adapter.cli.output import escape, out, print_error, print_json
from sunx_adapter.host import ExchangeHost, FoundOffer

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = examples("sunx-adapter exchanges", "sunx-adapter exchanges --all --json")


def exchanges(
    everything: Annotated[
        bool, typer.Option("--all", help="List ccxt's own exchanges, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the exchanges that plugins offer, and the plugins that failed."""
    host = ExchangeHost()
    offers = host.offers()
    shown = [found for found in offers if everything or found.plugin != "ccxt"]
    if as_json:
        rows = [
            {
                "id": found.offer.id,
                "name": found.offer.name,
                "plugin": found.plugin,
                "has": dict(found.offer.has),
            }
            for found in shown
        ]
        print_json({"exchanges": rows, "problems": [str(problem) for problem in host.problems]})
    else:
        out().print(_table(shown))
        if hidden := len(offers) - len(shown):
            out().print(f"and {hidden} exchanges of ccxt (list them with --all)", style="dim")
    for problem in host.problems:
        print_error(str(problem))
    if host.problems:
        raise typer.Exit(1)


def _table(offers: list[FoundOffer]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "name", "plugin", "what works"):
        table.add_column(heading)
    for found in offers:
        works = ", ".join(sorted(name for name, works in found.offer.has.items() if works))
        cells = (found.offer.id, found.offer.name, found.plugin, works)
        table.add_row(*map(escape, cells))
    return table
