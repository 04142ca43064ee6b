"""The built-in plugin that offers all of ccxt's exchanges to a host."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sunx_adapter.hookspecs import ExchangeOffer, hookimpl


@hookimpl
def exchange_offers() -> tuple[ExchangeOffer, ...]:
    """Offer ccxt's exchanges, without importing ccxt."""
    return tuple(
        ExchangeOffer(
            id=exchange_id,
            name=exchange_id,
            sync_class=f"ccxt:{exchange_id}",
            async_class=f"ccxt.async_support:{exchange_id}",
        )
        for exchange_id in _exchange_ids()
    )


@cache
def _exchange_ids() -> tuple[str, ...]:
    # Importing ccxt takes a third of a second and 80 MB. Its list of ids is a literal in its
    # __init__.py, which is read instead.
    spec = find_spec("ccxt")
    if spec is None or spec.origin is None:
        return ()
    for statement in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="exchanges")], value=value):
                return tuple(ast.literal_eval(value))
    return ()
