"""This package's plugin for hosts. It imports nothing heavier than pluggy."""

from sunx_adapter.hookspecs import ExchangeOffer, hookimpl
from sunx_adapter.venue import HTX_FUTURES, SUNX

OFFERS = (
    ExchangeOffer(
        id=SUNX.id,
        name=SUNX.name,
        sync_class="sunx_adapter.exchange.sync:Sunx",
        async_class="sunx_adapter.exchange.asynchronous:AsyncSunx",
        has={"fetchBalance": True, "watchBalance": True},
    ),
    ExchangeOffer(
        id=HTX_FUTURES.id,
        name=HTX_FUTURES.name,
        sync_class="sunx_adapter.exchange.sync:HtxFutures",
        async_class="sunx_adapter.exchange.asynchronous:AsyncHtxFutures",
        has={"fetchBalance": True, "watchBalance": True},
    ),
)


@hookimpl
def exchange_offers() -> tuple[ExchangeOffer, ...]:
    """Offer ``sunx`` and ``htxfutures``."""
    return OFFERS
