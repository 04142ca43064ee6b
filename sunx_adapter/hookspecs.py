"""The one hook between a multi-exchange host and its plugins.

A plugin is any module (or object) with a function ``exchange_offers`` marked with
:data:`hookimpl`, named in its distribution's entry-point group ``multi_exchange``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pluggy

PROJECT = "multi_exchange"
"""The pluggy project name and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class ExchangeOffer:
    """One exchange that a plugin provides, as data, so that an offer imports nothing.

    Attributes:
        id: ccxt-style id, lower case: ``"sunx"``.
        name: the name to display: ``"SunX"``.
        sync_class: import string ``"package.module:Class"`` of a ``ccxt.Exchange``.
        async_class: the same of a ``ccxt.async_support.Exchange``.
        has: what works, with the keys of ccxt's ``has``: ``{"fetchBalance": True}``. If the two
            classes differ, it describes the asynchronous one.
    """

    id: str
    name: str
    sync_class: str
    async_class: str
    has: Mapping[str, bool] = field(default_factory=dict)


@hookspec
def exchange_offers() -> Sequence[ExchangeOffer]:  # type: ignore[empty-body]
    """The exchanges that this plugin offers. Called at discovery, so it must be cheap."""
