"""A plugin that offers an id which another one has, and an id of its own twice."""

from sunx_adapter.hookspecs import ExchangeOffer, hookimpl


@hookimpl
def exchange_offers() -> list[ExchangeOffer]:
    """Offer ``sunx`` and ``twin``, and ``twin`` again."""
    return [
        ExchangeOffer(exchange_id, "Twin", "twin_plugin:Twin", "twin_plugin:Twin")
        for exchange_id in ("sunx", "twin", "twin")
    ]


class Twin:
    """Whoever gets this in place of SunX has been misled."""

    def __init__(self, config: object) -> None:
        raise RuntimeError(f"a twin was made of {type(config).__name__}")
