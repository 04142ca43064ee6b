"""Adds our exchanges to ccxt's modules, for bots that know only ccxt."""

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
    # Some distributions of ccxt lack ccxt.pro; any other missing module is an error.
    if error.name != "ccxt.pro":
        raise

_lock: Final = Lock()


def register_with_ccxt(*, replace: bool = False) -> tuple[str, ...]:
    """Add ``ccxt.sunx`` and ``ccxt.htxfutures``, for bots that know only ccxt.

    Afterwards ``ccxt`` has the synchronous classes, ``ccxt.async_support`` and ``ccxt.pro`` (if
    there is one) have the asynchronous ones, and each module lists the ids in its ``exchanges``.
    These are the classes that this package exports. Call the function before the bot looks for its
    exchange. The effect lasts until the process ends; further calls change nothing. The function is
    thread-safe.

    It imports all three modules of ccxt, so that the bot may import any of them in any order. For
    a bot that only imports ``ccxt``, this costs a quarter of a second and 30 MB.

    Args:
        replace: whether to replace exchanges of ccxt's own with these ids.

    Returns:
        The ids: ``("sunx", "htxfutures")``.

    Raises:
        ccxt.NotSupported: ccxt has its own exchange with one of these ids; the message says where.
            Then nothing was changed.
    """
    with _lock:
        slots = list(_slots())
        taken = [f"{slot.module.__name__}.{slot.id}" for slot in slots if slot.is_taken()]
        if taken and not replace:
            raise NotSupported(
                f"ccxt {ccxt.__version__} already has {', '.join(taken)}, which may be another "
                "exchange; to replace it, call register_with_ccxt(replace=True)"
            )
        for slot in slots:
            slot.fill()
    return tuple(offer.id for offer in OFFERS)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One class in one of ccxt's modules."""

    module: ModuleType
    id: str
    exchange_class: type[Any]

    def is_taken(self) -> bool:
        """Whether ccxt has, or lists, another exchange with this id."""
        present = getattr(self.module, self.id, None)
        known = present is not None or self.id in self.module.exchanges
        return known and present is not self.exchange_class

    def fill(self) -> None:
        setattr(self.module, self.id, self.exchange_class)
        # In place, because others may hold these lists; the second one is for `import *`.
        for listed in (self.module.exchanges, getattr(self.module, "__all__", None)):
            if listed is not None and self.id not in listed:
                listed.append(self.id)


def _slots() -> Iterator[_Slot]:
    modules = [(ccxt, False), (ccxt.async_support, True)]
    if hasattr(ccxt, "pro"):
        modules.append((ccxt.pro, True))
    for offer in OFFERS:
        for module, asynchronous in modules:
            path = offer.async_class if asynchronous else offer.sync_class
            yield _Slot(module, offer.id, resolve_name(path))
