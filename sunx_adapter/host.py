"""The reference host: finds plugins, makes exchanges by id, and reads many accounts at once.

A bot can use it, or take it as an example for its own host.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import pluggy

from sunx_adapter import ccxt_plugin, hookspecs
from sunx_adapter.frames import without_frames
from sunx_adapter.hookspecs import PROJECT, ExchangeOffer

if TYPE_CHECKING:
    from asyncio import Lock

    from ccxt.base.types import Balances


class Exchange(Protocol):
    """A synchronous ccxt exchange. ccxt's other members exist, too, but are not typed."""

    id: str
    has: dict[str, Any]
    options: dict[str, Any]

    def fetch_balance(self, params: dict[str, Any] = ..., /) -> "Balances": ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def __getattr__(self, name: str, /) -> Any: ...


class AsyncExchange(Protocol):
    """An asynchronous ccxt exchange, typed like :class:`Exchange`."""

    id: str
    has: dict[str, Any]
    options: dict[str, Any]

    async def fetch_balance(self, params: dict[str, Any] = ..., /) -> "Balances": ...  # noqa: D102

    async def close(self) -> None: ...  # noqa: D102

    def __getattr__(self, name: str, /) -> Any: ...


class HostError(Exception):
    """The host cannot make the exchange."""


class UnknownExchangeError(HostError, LookupError):
    """No plugin offers the id."""


class ConflictingOffersError(HostError):
    """Two plugins offer the same id, so the host would have to guess."""


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """A plugin that could not be used; the others are not affected.

    Attributes:
        plugin: its name.
        reason: the exception's type and text.
    """

    plugin: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} is not used: {self.reason}"


@dataclass(frozen=True, slots=True)
class FoundOffer:
    """An offer and the name of its plugin."""

    offer: ExchangeOffer
    plugin: str


class ExchangeHost:
    """Discovers plugins by entry point and makes the exchanges that they offer.

    ``ExchangeHost().create("sunx", {"apiKey": …, "secret": …})``. The built-in plugin ``"ccxt"``
    offers all exchanges of ccxt.

    Args:
        discover: whether to load the plugins of the entry-point group ``multi_exchange``.
        prefer: the plugin to use for an id that several plugins offer:
            ``{"sunx": "sunx-adapter"}``.

    Attributes:
        problems: the plugins that could not be used, and why.
    """

    def __init__(self, *, discover: bool = True, prefer: Mapping[str, str] | None = None) -> None:
        self.problems: list[PluginProblem] = []
        self._prefer = dict(prefer or {})
        self._plugins = pluggy.PluginManager(PROJECT)
        self._plugins.add_hookspecs(hookspecs)
        self._found: list[FoundOffer] | None = None
        self.register(ccxt_plugin, "ccxt")
        if discover:
            for entry_point in entry_points(group=PROJECT):
                with self._reporting(entry_point.name):
                    self.register(entry_point.load(), entry_point.name)

    def register(self, plugin: ModuleType | object, name: str) -> None:
        """Add a plugin without an entry point; a failure is reported in :attr:`problems`."""
        with self._reporting(name):
            self._plugins.register(plugin, name)
            if not self._plugins.get_hookcallers(plugin):
                raise TypeError(
                    f"it has no function exchange_offers() marked with {PROJECT}'s hookimpl"
                )
        self._found = None

    @contextlib.contextmanager
    def _reporting(self, plugin: str) -> Iterator[None]:
        """Report any exception of a plugin, even SystemExit, as a problem."""
        try:
            yield
        except KeyboardInterrupt:
            raise  # the user's, not the plugin's
        except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way
            try:
                reason = f"{type(error).__name__}: {error}"
            except Exception:  # noqa: BLE001 - its __str__ may fail, too
                reason = type(error).__name__
            problem = PluginProblem(plugin, reason)
            if problem not in self.problems:
                self.problems.append(problem)

    def offers(self) -> list[FoundOffer]:
        """All offers, ordered by id. Two plugins may offer the same id; see :meth:`offer`."""
        if self._found is None:
            found: list[FoundOffer] = []
            # Each plugin separately, so that a failing one does not hide the others.
            for hook in self._plugins.hook.exchange_offers.get_hookimpls():
                with self._reporting(hook.plugin_name):
                    offers = _checked(hook.function())
                    found += [FoundOffer(offer, hook.plugin_name) for offer in offers]
            self._found = sorted(found, key=lambda entry: (entry.offer.id, entry.plugin))
        return self._found

    def offer(self, exchange_id: str) -> FoundOffer:
        """The one offer of an id.

        Raises:
            UnknownExchangeError: there is none; the message suggests similar ids.
            ConflictingOffersError: there are several; the message names their plugins.
        """
        offers = self.offers()
        same = [found for found in offers if found.offer.id == exchange_id]
        if (preferred := self._prefer.get(exchange_id)) is not None:
            same = [found for found in same if found.plugin == preferred]
            if not same:
                raise UnknownExchangeError(
                    f"the plugin {preferred!r}, preferred for {exchange_id!r}, does not offer it"
                )
        if not same:
            ids = sorted({found.offer.id for found in offers})
            similar = difflib.get_close_matches(exchange_id.lower(), ids)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            raise UnknownExchangeError(f"no plugin offers the exchange {exchange_id!r}{hint}")
        if len(same) > 1:
            plugins = " and ".join(repr(found.plugin) for found in same)
            raise ConflictingOffersError(
                f"the plugins {plugins} offer the exchange {exchange_id!r}; choose one: "
                f"ExchangeHost(prefer={{{exchange_id!r}: {same[0].plugin!r}}})"
            )
        return same[0]

    @overload
    def create(
        self,
        exchange_id: str,
        config: Mapping[str, Any] | None = None,
        asynchronous: Literal[False] = False,
    ) -> Exchange: ...

    @overload
    def create(
        self,
        exchange_id: str,
        config: Mapping[str, Any] | None = None,
        *,
        asynchronous: Literal[True],
    ) -> AsyncExchange: ...

    @overload
    def create(
        self, exchange_id: str, config: Mapping[str, Any] | None, asynchronous: bool, /
    ) -> Any: ...

    def create(
        self, exchange_id: str, config: Mapping[str, Any] | None = None, asynchronous: bool = False
    ) -> Any:
        """Make an exchange.

        Args:
            exchange_id: ``"sunx"``, ``"htxfutures"``, or an id of another plugin or of ccxt.
            config: the exchange's configuration, with ccxt's names.
            asynchronous: whether to make a ``ccxt.async_support`` exchange.

        Raises:
            UnknownExchangeError: no plugin offers the id.
            ConflictingOffersError: two plugins do.
            HostError: the class cannot be loaded.
        """
        found = self.offer(exchange_id)
        path = found.offer.async_class if asynchronous else found.offer.sync_class
        module, _, name = path.partition(":")
        try:
            exchange_class = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise HostError(
                f"plugin {found.plugin!r} offers {exchange_id!r} as {path!r}, which cannot be "
                f"loaded: {error}"
            ) from error
        # Popped from a list, so that no local variable holds the keys if the class raises.
        handed_over = [dict(config or {})]
        del config
        return exchange_class(handed_over.pop())

    async def fetch_balances(
        self,
        accounts: Mapping[str, tuple[str, Mapping[str, Any]] | AsyncExchange],
        concurrency: int = 100,
    ) -> dict[str, dict[str, Any] | Exception]:
        """Read several accounts at once.

        Args:
            accounts: for each name the exchange's id and its configuration, or an asynchronous
                exchange. Exchanges that you pass stay open, so that the next call can use their
                connections. Exchanges that are made here are closed.
            concurrency: how many accounts to read at the same time; each needs a connection.

        Returns:
            For each name either the balance or the exception.
        """
        from asyncio import Lock, Semaphore, gather  # noqa: PLC0415 - for a quick start

        slots, making = Semaphore(concurrency), Lock()

        async def read(
            account: tuple[str, Mapping[str, Any]] | AsyncExchange,
        ) -> dict[str, Any] | Exception:
            async with slots:
                return await self._balance_of(account, making)

        balances = await gather(*map(read, accounts.values()))
        return dict(zip(accounts, balances, strict=True))

    async def _balance_of(
        self, account: tuple[str, Mapping[str, Any]] | AsyncExchange, making: "Lock"
    ) -> dict[str, Any] | Exception:
        from asyncio import sleep  # noqa: PLC0415 - for a quick start

        made: AsyncExchange | None = None
        try:
            if isinstance(account, tuple):
                async with making:  # one per turn of the event loop: making one takes milliseconds
                    exchange = made = self.create(*account, asynchronous=True)
                    await sleep(0)
            else:
                exchange = account
            balance: dict[str, Any] = await exchange.fetch_balance()
        except Exception as error:  # noqa: BLE001 - the caller decides, per account
            return without_frames(error)  # the frames hold configurations
        finally:
            if made is not None:
                with contextlib.suppress(Exception):  # the balance has been read
                    await made.close()
        return balance


def _checked(offers: Any) -> list[ExchangeOffer]:
    checked: list[ExchangeOffer] = []
    for offer in offers:
        if not isinstance(offer, ExchangeOffer):
            raise TypeError(f"exchange_offers() gave {offer!r} instead of an ExchangeOffer")
        given: tuple[Any, ...] = (offer.id, offer.name, offer.sync_class, offer.async_class)
        if any(not isinstance(text, str) for text in given):
            raise TypeError(f"exchange_offers() gave an offer whose names are not text: {offer!r}")
        works: Any = offer.has
        if not isinstance(works, Mapping):
            raise TypeError(
                f"exchange_offers() gave an offer whose 'has' is not a mapping: {offer!r}"
            )
        checked.append(offer)
    return checked
