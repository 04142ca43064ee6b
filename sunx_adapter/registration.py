"""For bots that look for exchanges in ccxt alone: ours stand there beside its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from threading import Lock
from types import ModuleType
from typing import Any, Final

import ccxt
import ccxt.async_support
from ccxt.base.errors import NotSupported

from sunx_adapter.plugin import OFFERS

try:
    import ccxt.pro
except ModuleNotFoundError as error:
    # A ccxt without its streams is whole; one of whose parts is missing is not.
    if error.name != "ccxt.pro":
        raise

_lock: Final = Lock()


def register_with_ccxt(*, replace: bool = False) -> tuple[str, ...]:
    """Make ``ccxt.sunx`` and ``ccxt.htxfutures``, for bots that know only ccxt.

    Afterwards ``ccxt`` has the synchronous classes, ``ccxt.async_support`` and (where ccxt has it)
    ``ccxt.pro`` the asynchronous ones, and each of these modules lists the ids in its
    ``exchanges``. They are the very classes that this package exports. Call it before the bot
    looks for its exchange; it lasts as long as the process. Calling it again changes nothing, and
    any thread may.

    All three modules of ccxt are imported at once, so that neither the order nor the kind of the
    bot's own imports matters. Against a bot that only ever imports ``ccxt``, that costs a quarter
    of a second and 30 MB.

    Args:
        replace: whether to take the place of an exchange that ccxt has of its own by then.

    Returns:
        The ids: ``("sunx", "htxfutures")``.

    Raises:
        ccxt.NotSupported: ccxt has one of the ids, and not from here; the message says where. Then
            nothing at all has been changed.
    """
    with _lock:
        places = list(_places())
        taken = [f"{place.module.__name__}.{place.id}" for place in places if place.is_taken()]
        if taken and not replace:
            raise NotSupported(
                f"ccxt {ccxt.__version__} already has {', '.join(taken)}, which may mean something "
                "else by that name; register_with_ccxt(replace=True) puts this package's there"
            )
        for place in places:
            place.fill()
    return tuple(offer.id for offer in OFFERS)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one class has to stand."""

    module: ModuleType
    id: str
    exchange_class: type[Any]

    def is_taken(self) -> bool:
        """Whether something else stands there, or is announced."""
        there = getattr(self.module, self.id, None)
        known = there is not None or self.id in self.module.exchanges
        return known and there is not self.exchange_class

    def fill(self) -> None:
        setattr(self.module, self.id, self.exchange_class)
        # In place, for those who hold the lists already; and what `import *` gives.
        for listed in (self.module.exchanges, getattr(self.module, "__all__", None)):
            if listed is not None and self.id not in listed:
                listed.append(self.id)


def _places() -> Iterator[_Place]:
    modules = [(ccxt, False), (ccxt.async_support, True)]
    if hasattr(ccxt, "pro"):
        modules.append((ccxt.pro, True))
    for offer in OFFERS:
        for module, asynchronous in modules:
            path = offer.async_class if asynchronous else offer.sync_class
            yield _Place(module, offer.id, resolve_name(path))
