"""All differences between SunX and HTX, as data.

Sources: the venues' pages (``GET /sapi/v1/account/balance``, ``GET /v5/account/balance``) and
HTX's older futures manual. To add a venue of this family, add an entry to :data:`VENUES` and a pair
of classes.
"""

from dataclasses import dataclass
from typing import Final, Literal

PathVariantName = Literal["sapi/v1", "v5"]
Access = Literal["private", "public"]
FreePolicy = Literal["margin", "available", "withdrawable"]
"""The meaning of ``free``; :mod:`sunx_adapter.balance` has its fields."""


@dataclass(frozen=True, slots=True)
class PathVariant:
    """One of the two spellings of the same API.

    Attributes:
        balance: path of the balance endpoint, with its leading slash.
        stream: path of the private push channel.
    """

    balance: str
    stream: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One GET endpoint: ``private`` ones are signed and count against the read limit."""

    path: str
    access: Access


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """At most ``requests`` private reads in any ``seconds`` seconds, per user (UID)."""

    requests: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Venue:
    """One venue.

    Attributes:
        id: the exchange's id, as in ccxt.
        name: the name to display.
        hostname: host of the REST and push addresses.
        other_hostnames: further hosts of the venue with the same endpoints.
        path_variant: the variant that the venue documents.
        endpoints: the GET endpoints besides the balance.
        time: path of the venue's time, if it has one.
        asset_mode: path of the account's collateral mode, if the venue has one.
        www: home page.
        doc: pages with the rules that this package follows.
        env_prefix: prefix of the environment variables that hold its keys.
    """

    id: str
    name: str
    hostname: str
    other_hostnames: tuple[str, ...]
    path_variant: PathVariantName
    endpoints: tuple[Endpoint, ...]
    time: str | None
    asset_mode: str | None
    www: str
    doc: tuple[str, ...]
    env_prefix: str


PATH_VARIANTS: Final[dict[PathVariantName, PathVariant]] = {
    "sapi/v1": PathVariant(balance="/sapi/v1/account/balance", stream="/ws/v1/notification"),
    "v5": PathVariant(balance="/v5/account/balance", stream="/ws/v5/notification"),
}

READ_LIMIT: Final = ReadLimit(requests=72, seconds=3)
"""Both pages allow 144 private requests in 3 s per UID, 72 of them for reading."""

SUNX: Final = Venue(
    id="sunx",
    name="SunX",
    hostname="api.sunx.io",
    other_hostnames=(),
    path_variant="sapi/v1",
    endpoints=(Endpoint("/sapi/v1/public/multi_assets_margin", "private"),),
    time=None,
    asset_mode=None,
    www="https://www.sunx.io",
    doc=("https://docs.sunx.io",),
    env_prefix="SUNX",
)

HTX_FUTURES: Final = Venue(
    id="htxfutures",
    name="HTX Futures",
    hostname="api.hbdm.com",
    other_hostnames=("api.hbdm.vn",),  # for those on AWS
    path_variant="v5",
    endpoints=(
        Endpoint("/v5/account/asset_mode", "private"),
        Endpoint("/v5/market/multi_assets_margin", "private"),
        Endpoint("/api/v1/timestamp", "public"),
        Endpoint("/heartbeat/", "public"),
    ),
    time="/api/v1/timestamp",
    asset_mode="/v5/account/asset_mode",
    www="https://www.htx.com",
    doc=(
        "https://www.htx.com/en-us/opend/newApiPages/?id=8cb89359-77b5-11ed-9966-19588469969",
        "https://www.htx.com/en-us/opend/newApiPages/",
    ),
    env_prefix="HTXFUTURES",
)

VENUES: Final[dict[str, Venue]] = {venue.id: venue for venue in (SUNX, HTX_FUTURES)}
