"""What this package offers to hosts. Imports nothing heavier than pluggy."""

from sunx_adapter.hookspecs import ExchangeOffer, hookimpl
from sunx_adapter.venue import HTX_FUTURES, SUNX

OFFERS = (
    ExchangeOffer(
        id=SUNX.id,
        name=SUNX.name,
        sync_class="sunx_adapter.exchange:Sunx",
        async_class="sunx_adapter.async_exchange:AsyncSunx",
        has={"fetchBalance": True},
    ),
    ExchangeOffer(
        id=HTX_FUTURES.id,
        name=HTX_FUTURES.name,
        sync_class="sunx_adapter.exchange:HtxFutures",
        async_class="sunx_adapter.async_exchange:AsyncHtxFutures",
        has={"fetchBalance": True},
    ),
)


@hookimpl
def exchange_offers() -> tuple[ExchangeOffer, ...]:
    """Offer ``sunx`` and ``htxfutures``."""
    return OFFERS
