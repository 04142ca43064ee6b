"""A bot with hooks of its own, that reads balances through whatever is installed beside it.

It shares nothing with its plugins but the name of a pluggy project. It reads a JSON object from
standard input, ``{"accounts": {id: configuration}, "prefer": {id: plugin}}``, and writes what it
found.
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
    """What this host asks of its plugins."""

    @hookspec
    def exchange_offers(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Tell which exchanges there are."""

    @hookspec
    def host_started(self, host: str) -> None:
        """Told once, at the beginning; an exchange need not care."""


@dataclass(slots=True)
class Report:
    """What came of it.

    Attributes:
        plugins: those that were found.
        balances: by id, and by kind of class.
        problems: by plugin or id, the reason why it is not used.
        imported_early: what is heavy, and was imported before a class was needed.
    """

    plugins: list[str] = field(default_factory=list)
    balances: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    imported_early: list[str] = field(default_factory=list)


def discover(report: Report) -> dict[str, list[tuple[str, Offer]]]:
    """Every offer by id, each with the name of its plugin."""
    plugins = pluggy.PluginManager(PROJECT)
    plugins.add_hookspecs(Hooks)
    for entry_point in entry_points(group=PROJECT):
        try:
            plugins.register(entry_point.load(), entry_point.name)
        except Exception as error:  # noqa: BLE001 - a stranger's code may fail in any way
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
    """A balance through an asynchronous class."""
    async with exchange_class(config) as exchange:
        return await exchange.fetch_balance()


def fetch(exchange_class: Any, config: dict[str, Any]) -> Any:
    """A balance through a synchronous class."""
    exchange = exchange_class(config)
    try:
        return exchange.fetch_balance()
    finally:
        exchange.close()


def main() -> None:
    """Read what is asked for, and answer it."""
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
