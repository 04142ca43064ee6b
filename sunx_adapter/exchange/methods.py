"""ccxt's methods in our classes: refuses the unsupported ones, and adds camelCase names.

Each method whose entry in ``has`` is false raises NotSupported; not all of ccxt's own methods
would.
"""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from types import FunctionType
from typing import Any

import ccxt
from ccxt.base.errors import NotSupported
from ccxt.base.types import Entry

_METHODS = (FunctionType, staticmethod, classmethod, Entry)


def name_methods(cls: type) -> list[str]:
    """Give all methods of a class their camelCase names.

    ccxt's constructor does so for every name in ``dir(exchange)`` of each new exchange, which takes
    most of its time. Methods are the same for all exchanges of a class, settings are not.

    Returns:
        The names of settings, which ccxt's constructor still has to convert.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found |= vars(base)
    names = [name for name in found if "_" in name and name[0] != "_" and name[-1] != "_"]
    for name in names:
        if isinstance(found[name], _METHODS):
            setattr(cls, _camel_case(name), found[name])
    return [name for name in names if not isinstance(found[name], _METHODS)]


def refuse_unsupported(cls: Any, kind: type) -> None:
    """Replace the methods of ccxt that ``cls`` inherits but does not support.

    Args:
        cls: our class; ``cls.serves`` has the supported names. Its own methods are not replaced.
        kind: ccxt's class.
    """
    # ccxt's ``has`` does not name fetchFees, which needs methods that are not supported.
    unsupported = (ccxt.Exchange().has.keys() | {"fetchFees"}) - cls.serves
    for name in dir(kind):
        method = getattr(kind, name)
        if name not in vars(cls) and _camel_case(name) in unsupported and callable(method):
            setattr(cls, name, _refusing(method))


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    # ccxt's exceptions to the rule.
    special = {"ohlcv": "OHLCV", "le": "LE", "be": "BE", "adl": "ADL"}
    return first + "".join(special.get(word, word.capitalize()) for word in rest)


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(self: Any, *_: object, **__: object) -> None:
        raise NotSupported(
            f"{self.id} {method.__name__}() is not supported: only balances are served"
        )

    async def refuse_async(self: Any, *_: object, **__: object) -> None:
        refuse(self)

    return wraps(method)(refuse_async if iscoroutinefunction(method) else refuse)
