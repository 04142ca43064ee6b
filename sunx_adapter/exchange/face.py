"""The ccxt-facing base class of all exchanges: describe, sign, has, parse. It uses no network.

Our exchanges inherit from :class:`Face` and from ccxt's synchronous or asynchronous class.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Never
from urllib.parse import unquote, urlsplit

from ccxt.base.errors import AuthenticationError, BadRequest, BaseError, NotSupported
from ccxt.base.types import Entry

from sunx_adapter import __version__
from sunx_adapter.balance import balance_structure, free_policy
from sunx_adapter.exchange.budget import MEMORY
from sunx_adapter.exchange.config import (
    PROXIES,
    PROXY_ADVICE,
    REFUSED_PROXIES,
    STREAM_PROXIES,
    accepted_config,
    check_address,
    check_choice,
    check_spelling,
)
from sunx_adapter.exchange.faults import as_ccxt
from sunx_adapter.exchange.methods import name_methods, refuse_unsupported
from sunx_adapter.exchange.redaction import MAX_TEXT, cleaned, passwords
from sunx_adapter.exchange.retry import DEFAULT_RETRIES
from sunx_adapter.protocol.account import AccountAnswer, AccountSummary, read_account, summarize
from sunx_adapter.protocol.document import document_of
from sunx_adapter.protocol.errors import RULE_BY_CODE
from sunx_adapter.protocol.signing import (
    Credentials,
    Ed25519Signer,
    HmacSigner,
    Signer,
    encode_query,
    signed_query,
)
from sunx_adapter.text import shortened
from sunx_adapter.venue import PATH_VARIANTS, READ_LIMIT, Endpoint, FreePolicy, PathVariant, Venue
from sunx_adapter.wire.body import ACCEPT_ENCODING
from sunx_adapter.wire.settings import ConnectionSettings, environment_proxy

_SERVED: Final = (
    ("type", "defaultType", ("swap", "future")),
    ("subType", "defaultSubType", ("linear",)),
    ("marginMode", "defaultMarginMode", ("cross",)),
)
_PARAMETERS: Final = (*(name for name, *_ in _SERVED), "free")

RATE_LIMIT_MS: Final = READ_LIMIT.seconds * 1000 / READ_LIMIT.requests
"""The venue's limit in ccxt's terms: ms between two requests. Bursts are allowed nevertheless."""

_MAX_MESSAGE: Final = 600
_MAX_PRINTED: Final = 200_000
_KEPT_SIGNATURES: Final = 16
_KEPT_CODES: Final = 4096
_SECRET_PARAMETER: Final = re.compile(r"[?&](?:Signature|AccessKeyId)=([^&#]*)")


Params = Mapping[str, Any] | None
"""A caller's parameters, as ccxt passes them."""


class Call(NamedTuple):
    """One GET, signed each time it is sent.

    Attributes:
        address: the URL without its query.
        url: returns the whole URL, signed with the current time.
        api_key: the owner of the connections to use.
        private: whether the request is signed and counts against the read limit.
        headers: in addition to the exchange's own.
        uid: the user id that belongs to the API key, if known.
    """

    address: str
    url: Callable[[], str]
    api_key: str
    private: bool
    headers: Mapping[str, str] = {}
    uid: str | None = None


def _endpoints(venue: Venue) -> list[Endpoint]:
    balances = [Endpoint(variant.balance, "private") for variant in PATH_VARIANTS.values()]
    return balances + list(venue.endpoints)


@cache
def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def check_read_only(method: str, body: object = None) -> None:
    """Refuse a request that would do more than read.

    Raises:
        NotSupported: the method is not GET, or there is a body.
    """
    if method != "GET" or body is not None:
        raise NotSupported(f"only GET is supported, not {method}: this adapter only reads")


if TYPE_CHECKING:
    from ccxt import Exchange as CcxtExchange
else:
    CcxtExchange = object


class Face(CcxtExchange):  # type: ignore[misc]
    """The part of an exchange that needs no network and never waits."""

    venue: ClassVar[Venue]
    serves: ClassVar[frozenset[str]] = frozenset({"fetchBalance"})
    """The methods of ccxt that work, by their names in ``has``. All others are refused."""

    logger = logging.getLogger("sunx_adapter")
    cafile: str | None = None
    _made = False
    _settings_names: ClassVar[list[str]]

    def __init_subclass__(
        cls, venue: Venue | None = None, ccxt_class: type | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if ccxt_class is not None:
            refuse_unsupported(cls, ccxt_class)
        if venue is not None:
            cls.venue = venue
            for endpoint in _endpoints(venue):
                path = endpoint.path.strip("/")
                words = [endpoint.access, "get", *re.split(r"[^A-Za-z0-9]+", path)]
                entry = Entry(path, endpoint.access, "GET", {"cost": 1})
                setattr(cls, "_".join(words), entry)
                setattr(cls, words[0] + "".join(word.capitalize() for word in words[1:]), entry)

    def __init__(self, config: Mapping[str, Any] | None = None, **misplaced: Never) -> None:
        self._prepare()  # first: ccxt also closes an exchange that could not be made
        if misplaced:
            kind, name = type(self).__name__, next(iter(misplaced))
            del misplaced  # the traceback shows this frame
            raise TypeError(f"{kind} takes its settings in a dict: {kind}({{{name!r}: …}})")
        if not isinstance(config, Mapping | None):
            raise BadRequest(f"{self.venue.id}: settings must be in a dict")
        # The latest requests and logins: a peer may repeat their signatures.
        self._signatures: deque[str] = deque(maxlen=_KEPT_SIGNATURES)
        self._codes: tuple[object, object, Callable[[str], str]] | None = None
        self._credentials: tuple[tuple[str | None, ...], Credentials] | None = None
        self._settings: tuple[object, ConnectionSettings] | None = None
        try:
            super().__init__(accepted_config(config or {}, type(self)))
            self._made = True
            self._connection_settings()
            return
        except Exception as error:  # noqa: BLE001 - ccxt may raise anything for a configuration
            # Raised below, so that no traceback shows the secrets in this frame's config.
            failure = as_ccxt(error)
            config, refusal = None, type(failure)(f"{self.venue.id}: {failure}")
        raise refusal

    def __dir__(self) -> Iterable[str]:
        if self._made:
            return object.__dir__(self)
        cls = type(self)
        # ccxt's constructor gives all these names their camelCase form. Methods have it already.
        if "_settings_names" not in vars(cls):
            cls._settings_names = name_methods(cls)
        return [*cls._settings_names, *vars(self)]

    def _prepare(self) -> None:
        """Initialise the attributes that do not depend on the configuration."""

    # -- ccxt's interface -------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """This exchange's description in ccxt's structure."""
        venue = self.venue
        api: dict[str, dict[str, dict[str, Any]]] = {"private": {"get": {}}, "public": {"get": {}}}
        for endpoint in _endpoints(venue):
            api[endpoint.access]["get"][endpoint.path.strip("/")] = {"cost": 1}
        base: dict[str, Any] = super().describe()
        served = {"linear": {"sandbox": False}, "inverse": None}
        return {
            **base,
            "id": venue.id,
            "name": venue.name,
            "countries": [],
            "version": venue.path_variant,
            "rateLimit": RATE_LIMIT_MS,
            "certified": False,
            "pro": False,
            "hostname": venue.hostname,
            "userAgent": f"sunx-adapter/{__version__}",
            "has": {
                **dict.fromkeys(base["has"], False),
                **dict.fromkeys(("privateAPI", "swap", "future", *self.serves), True),
                "publicAPI": any(endpoint.access == "public" for endpoint in venue.endpoints),
            },
            "features": {"swap": served, "future": served},
            "urls": {
                "api": {"rest": "https://{hostname}", "stream": "wss://{hostname}"},
                "www": venue.www,
                "doc": list(venue.doc),
            },
            "api": api,
            "requiredCredentials": {
                **dict.fromkeys(base["requiredCredentials"], False),
                "apiKey": True,
                "secret": True,
            },
            "exceptions": {
                "exact": {code: rule.exception for code, rule in RULE_BY_CODE.items()},
                "broad": {},
            },
            "options": {
                "defaultType": "swap",
                "pathVariant": venue.path_variant,
                "free": "margin",
                "rateLimitStorage": MEMORY,
                "maxRetriesOnFailure": DEFAULT_RETRIES,
                "adjustForTimeDifference": False,
                "timeDifference": 0,
            },
        }

    def check_required_credentials(self, error: bool = True) -> bool:
        """Whether there is a key, and a secret or a private key.

        Raises:
            AuthenticationError: ``error`` is true and keys are missing; the message names them.
        """
        missing = [] if self.apiKey else ["apiKey"]
        missing += [] if self.secret or self.privateKey else ["secret (or privateKey)"]
        if missing and error:
            raise AuthenticationError(f"{self.id} requires {' and '.join(missing)}")
        return not missing

    def sign(
        self, path: str, api: str | list[str] = "public", method: str = "GET", params: Params = None
    ) -> dict[str, Any]:
        """A signed request for ccxt's ``fetch()``: ``url``, ``method``, ``body``, ``headers``.

        Raises:
            NotSupported: the method is not GET.
            AuthenticationError: the endpoint is private and keys are missing.
        """
        url = self._endpoint_call(path, api, method, params).url()
        return {"url": url, "method": "GET", "body": None, "headers": self._headers()}

    def parse_account_summary(self, info: Mapping[str, Any]) -> AccountSummary:
        """The account's summary from a balance's ``info``, without another request.

        Raises:
            BadResponse: a figure is missing or not a number, or the state is unknown.
        """
        return summarize(read_account(document_of(info)))

    def enable_demo_trading(self, enable: bool) -> None:
        """Not supported: these venues have no demo host."""
        if enable:
            raise NotSupported(f"{self.id} has no demo host; for a local one see Sandbox")

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            f"{self.id}: an exchange holds keys and connections, so it cannot be pickled or "
            "copied; make another one from the same configuration"
        )

    def use_connections_of(self, other: "Face") -> None:
        """Do nothing, for bots that call it: different keys never share connections."""

    def nonce(self) -> int:
        """The time to sign with, ms UTC: the venue's time, if the difference to ours is known."""
        return self._clock()

    def before_write(self) -> None:
        """Do nothing. Called right before each request is written; an exception prevents that."""

    def _clock(self) -> int:
        # Not nonce(): a host may replace that method to notice when a request is signed.
        return int(time.time() * 1000) - int(self.options["timeDifference"])

    # -- the steps of a call that need no network -------------------------------------------

    def _parameters(self, params: Params) -> tuple[dict[str, Any], FreePolicy]:
        """The parameters to send, and the meaning of ``free``."""
        if not isinstance(params := params or {}, Mapping):
            raise BadRequest("params must be a mapping")
        rest = {key: value for key, value in params.items() if value is not None}
        for name, default, served in _SERVED:
            value = rest.pop(name, self.options.get(default))
            if value not in served:
                check_choice(f"{self.id} {name}", value, served)
        policy = free_policy(rest.pop("free", self.options["free"]))
        check_spelling("parameter", rest, _PARAMETERS)
        return rest, policy

    def _paths(self) -> PathVariant:
        chosen = self.options["pathVariant"]
        check_choice("options['pathVariant']", chosen, tuple(PATH_VARIANTS))
        return PATH_VARIANTS[chosen]

    def _endpoint_call(self, path: str, api: str | list[str], method: str, params: Params) -> Call:
        check_read_only(method)
        access = api if isinstance(api, str) else api[0]
        # ccxt's endpoints have no leading slash, and one of HTX's ends with one.
        listed = next((e.path for e in _endpoints(self.venue) if e.path.strip("/") == path), None)
        return self._get(listed or "/" + path.lstrip("/"), params or {}, access == "private")

    def _time_call(self) -> Call:
        # Any answer has the time, even a refusal, if the venue has no endpoint for it.
        path = self.venue.time or PATH_VARIANTS[self.venue.path_variant].balance
        return self._get(path, {}, private=False)

    def _get(self, path: str, parameters: Mapping[str, object], private: bool = True) -> Call:
        address = self._address()
        # The keys at the start of the call: a user may change them while it waits.
        credentials = self._current_credentials() if private else None

        def url() -> str:
            if credentials is None:
                query = encode_query(parameters)
            else:
                query = signed_query(
                    credentials,
                    host=self._signature_host(address),
                    path=path,
                    parameters=parameters,
                    milliseconds=self.nonce(),
                )
            return f"{address}{path}?{query}" if query else address + path

        return Call(address + path, url, self.apiKey or "", private, uid=self.uid)

    def _address(self, kind: str = "rest") -> str:
        address: str = self.urls["api"][kind].replace("{hostname}", self.hostname)
        check_address(address)
        return address.rstrip("/")

    def _signature_host(self, address: str) -> str:
        host: str = self.options.get("signatureHost") or _host(address)
        return host

    def _current_credentials(self) -> Credentials:
        # As with every ccxt exchange, the user may change keys at any time.
        self.check_required_credentials()
        keys = (self.apiKey, self.secret, self.privateKey)
        if self._credentials is None or self._credentials[0] != keys:
            signer: Signer
            signer = Ed25519Signer(self.privateKey) if self.privateKey else HmacSigner(self.secret)
            self._credentials = (keys, Credentials(self.apiKey, signer))
        return self._credentials[1]

    def _headers(self) -> dict[str, str]:
        agent = self.user_agent or self.userAgent
        agents = agent if isinstance(agent, dict) else {"User-Agent": agent} if agent else {}
        headers = {"Accept": "application/json", "Accept-Encoding": ACCEPT_ENCODING, **agents}
        if self.headers:
            own = {name.lower() for name in self.headers}
            headers = {name: text for name, text in headers.items() if name.lower() not in own}
            headers |= self.headers
        return headers

    def _structure(self, answer: AccountAnswer, policy: FreePolicy) -> dict[str, Any]:
        # The codes depend on these; the user may change them at any time.
        common, by_id, codes = self.commonCurrencies, self.currencies_by_id, self._codes
        if codes is None or codes[0] != common or codes[1] is not by_id:
            # Cached: ccxt makes a whole currency structure for each call.
            code_of = lru_cache(_KEPT_CODES)(self.safe_currency_code)
            codes = self._codes = dict(common), by_id, code_of
        return balance_structure(answer, policy=policy, number=self.number, code_of=codes[2])

    def _given_markets(self) -> dict[str, Any]:
        if not self.markets_by_id:
            self.set_markets(self.markets or [])
        markets: dict[str, Any] = self.markets
        return markets

    def _connection_settings(self) -> ConnectionSettings:
        """How to connect; the user may change the attributes at any time."""
        known = _connection_attributes(self)
        if self._settings is None or self._settings[0] != known:
            refused = next((name for name in REFUSED_PROXIES if getattr(self, name, None)), None)
            if refused:
                raise NotSupported(f"{refused!r} cannot be honoured: {PROXY_ADVICE}")
            proxy = next((proxy for proxy in self.check_proxy_settings() if proxy), None)
            trust_env = self.trust_env or self.aiohttp_trust_env or self.requests_trust_env
            if proxy is None and trust_env:
                proxy = environment_proxy(self._address())
            self._settings = (known, ConnectionSettings(proxy, self.cafile, bool(trust_env)))
        return self._settings[1]

    # -- redaction of all text that leaves the exchange -------------------------------------

    def _cleaned(self, text: str, url: str = "", length: int = MAX_TEXT) -> str:
        """The text without the exchange's secrets, the latest signatures, and the URL's secrets.

        The URL's key may differ from the exchange's present key.
        """
        urls = (self.options.get("rateLimitStorage"), *_proxy_attributes(self))
        sent = {unquote(text) for text in (*_SECRET_PARAMETER.findall(url), *self._signatures)}
        secrets = (self.secret, self.privateKey, *passwords(*urls), *(sent - {self.apiKey}))
        return cleaned(text, api_key=self.apiKey, secrets=secrets, length=length)

    def _log(self, level: int, text: str) -> None:
        if self.logger.isEnabledFor(level):
            self.logger.log(level, "%s", self._cleaned(f"{self.id}: {text}"))

    def _print(self, title: str, *parts: object, url: str) -> None:
        """Print for ``verbose``, as ccxt does."""
        lines = "\n".join(self._cleaned(part, url, _MAX_PRINTED) for part in map(str, parts))
        self.log(f"\n{title}:", self.id, lines)

    def _redacted(self, error: Exception, where: str = "", url: str = "") -> BaseError:
        """A copy of the exception for users: one of ccxt's classes, without secrets.

        The frames in the original's traceback hold the signed request.
        """
        failure = as_ccxt(error)
        return type(failure)(shortened(self._cleaned(f"{where}{failure}", url), _MAX_MESSAGE))


_proxy_attributes = attrgetter(*PROXIES, *STREAM_PROXIES)
_connection_attributes = attrgetter(
    *PROXIES,
    *REFUSED_PROXIES,
    *("trust_env", "aiohttp_trust_env", "requests_trust_env", "cafile", "hostname"),
)
