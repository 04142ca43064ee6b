"""Methods of ccxt that are not served say so; some of ccxt's own would not.

``has`` promises what works. Every other method that ``has`` names raises NotSupported.
"""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import ccxt
from ccxt.base.errors import NotSupported


def refuse_unserved(cls: Any, kind: type) -> None:
    """Replace the methods that ``cls`` would inherit from ccxt and does not serve.

    Args:
        cls: our class, with the names in ``cls.serves``; methods of its own are left alone.
        kind: ccxt's class.
    """
    unserved = ccxt.Exchange().has.keys() - cls.serves
    for name in dir(kind):
        method = getattr(kind, name)
        if name not in vars(cls) and _camel_case(name) in unserved and callable(method):
            setattr(cls, name, _refusing(method))


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    special = {"ohlcv": "OHLCV", "adl": "ADL"}  # ccxt's own exceptions to the rule
    return first + "".join(special.get(word, word.capitalize()) for word in rest)


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(self: Any, *_: object, **__: object) -> None:
        raise NotSupported(
            f"{self.id} {method.__name__}() is not supported: only balances are served"
        )

    async def refuse_async(self: Any, *_: object, **__: object) -> None:
        refuse(self)

    return wraps(method)(refuse_async if iscoroutinefunction(method) else refuse)
