"""A bot with its own hooks that reads balances through any installed plugin.

It shares only the name of a pluggy project with its plugins. It reads a JSON object from standard
input, ``{"accounts": {id: configuration}, "prefer": {id: plugin}}``, and writes a report.
"""

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any, Protocol

import pluggy

PROJECT = "multi_exchange"
HEAVY = ("ccxt", "httpx", "aiohttp", "cryptography")

hookspec = pluggy.HookspecMarker(PROJECT)


class Offer(Protocol):
    """What this host needs to know of an exchange."""

    id: str
    sync_class: str
    async_class: str


class Hooks:
    """The hooks of this host."""

    @hookspec
    def exchange_offers(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """List the exchanges of the plugin."""

    @hookspec
    def host_started(self, host: str) -> None:
        """Notify plugins once at the start; exchange plugins can ignore it."""


@dataclass(slots=True)
class Report:
    """The result.

    Attributes:
        plugins: names of the plugins found.
        balances: by id and kind of class.
        problems: why something is not used, by plugin or id.
        imported_early: heavy modules that were imported before a class was needed.
    """

    plugins: list[str] = field(default_factory=list)
    balances: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    imported_early: list[str] = field(default_factory=list)


def discover(report: Report) -> dict[str, list[tuple[str, Offer]]]:
    """Return every offer by id, each with the name of its plugin."""
    plugins = pluggy.PluginManager(PROJECT)
    plugins.add_hookspecs(Hooks)
    for entry_point in entry_points(group=PROJECT):
        try:
            plugins.register(entry_point.load(), entry_point.name)
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way
            report.problems[entry_point.name] = repr(error)
    plugins.check_pending()
    plugins.hook.host_started(host="small")
    offers: dict[str, list[tuple[str, Offer]]] = {}
    for hook in plugins.hook.exchange_offers.get_hookimpls():
        report.plugins.append(hook.plugin_name)
        made: Any = hook.function()
        for offer in made:
            offers.setdefault(offer.id, []).append((hook.plugin_name, offer))
    return offers


async def fetch_async(exchange_class: Any, config: dict[str, Any]) -> Any:
    """Read a balance with an asynchronous class."""
    async with exchange_class(config) as exchange:
        return await exchange.fetch_balance()


def fetch(exchange_class: Any, config: dict[str, Any]) -> Any:
    """Read a balance with a synchronous class."""
    exchange = exchange_class(config)
    try:
        return exchange.fetch_balance()
    finally:
        exchange.close()


def main() -> None:
    """Read the requested balances and write the report."""
    asked = json.load(sys.stdin)
    prefer = asked.get("prefer", {})
    report = Report()
    offers = discover(report)
    report.imported_early = [name for name in HEAVY if name in sys.modules]
    for exchange_id, config in asked["accounts"].items():
        candidates = [
            (plugin, offer)
            for plugin, offer in offers.get(exchange_id, [])
            if prefer.get(exchange_id, plugin) == plugin
        ]
        if len(candidates) != 1:
            report.problems[exchange_id] = f"offered by {[plugin for plugin, _ in candidates]}"
            continue
        [(_, offer)] = candidates
        report.balances[exchange_id] = {
            "sync": fetch(resolve_name(offer.sync_class), config),
            "async": asyncio.run(fetch_async(resolve_name(offer.async_class), config)),
        }
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    main()
