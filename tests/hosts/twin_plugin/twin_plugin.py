"""A plugin that offers another plugin's id, and its own id twice."""

from sunx_adapter.hookspecs import ExchangeOffer, hookimpl


@hookimpl
def exchange_offers() -> list[ExchangeOffer]:
    """Offer ``sunx`` and ``twin``, and ``twin`` again."""
    return [
        ExchangeOffer(exchange_id, "Twin", "twin_plugin:Twin", "twin_plugin:Twin")
        for exchange_id in ("sunx", "twin", "twin")
    ]


class Twin:
    """A class that must never be made in place of SunX."""

    def __init__(self, config: object) -> None:
        raise RuntimeError(f"a twin was made of {type(config).__name__}")
