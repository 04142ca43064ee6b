"""The ccxt face: what is alike for the synchronous and the asynchronous classes, and the former.

A call goes once down and once up. :class:`VenueFace` holds everything that neither sends nor
waits; the classes of :mod:`sunx_adapter.exchange` and :mod:`sunx_adapter.async_exchange` differ
only in how they send.
"""

import copy
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, wraps
from inspect import iscoroutinefunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

import ccxt
import httpx
import msgspec
from ccxt.base.errors import (
    AuthenticationError,
    BadRequest,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    ExchangeError,
    NotSupported,
)
from ccxt.base.types import Entry

from sunx_adapter import __version__
from sunx_adapter.balance import FreePolicy, balance_structure, free_policy
from sunx_adapter.config import (
    CONNECTION_ATTRIBUTES,
    PROXY_ADVICE,
    REFUSED_PROXIES,
    accepted_config,
    check_address,
    check_choice,
)
from sunx_adapter.protocol.account import AccountAnswer, AccountSummary, read_account, summarize
from sunx_adapter.protocol.document import Document
from sunx_adapter.protocol.envelope import HttpAnswer, read_envelope, venue_time
from sunx_adapter.protocol.errors import RULE_BY_CODE, TransientError
from sunx_adapter.protocol.signing import (
    Credentials,
    Ed25519Signer,
    HmacSigner,
    Signer,
    encode_query,
    signed_query,
)
from sunx_adapter.transport import synchronous
from sunx_adapter.transport.body import ACCEPT_ENCODING, MAX_RESPONSE_BYTES
from sunx_adapter.transport.budget import MEMORY, ReadBudget, shared_budget
from sunx_adapter.transport.redaction import redact, signatures, without_signature
from sunx_adapter.transport.request import SignedRequest
from sunx_adapter.transport.retry import DEFAULT_RETRIES, Tries
from sunx_adapter.transport.settings import ConnectionSettings, environment_proxy
from sunx_adapter.venue import HTX_FUTURES, PATH_VARIANTS, READ_LIMIT, SUNX, Endpoint, Venue

TransportKind = TypeVar("TransportKind")

SERVED_TYPES: Final = ("swap", "future")
SERVED_SUB_TYPES: Final = ("linear",)
SERVED_MARGIN_MODES: Final = ("cross",)

_SERVED: Final = (
    ("type", "defaultType", SERVED_TYPES),
    ("subType", "defaultSubType", SERVED_SUB_TYPES),
    ("marginMode", "defaultMarginMode", SERVED_MARGIN_MODES),
)

RATE_LIMIT_MS: Final = READ_LIMIT.seconds * 1000 / READ_LIMIT.requests
"""The venue's limit as ccxt tells it: ms between two requests. Bursts are allowed all the same."""

_MAX_MESSAGE = 600


class Call(msgspec.Struct, frozen=True):
    """One request as it is meant, not yet signed.

    Attributes:
        path: with its leading slash.
        parameters: the caller's own; they are signed too.
        private: signed, and counted against the read limit.
        address: scheme and host (and a gateway's path) that it goes to.
    """

    path: str
    address: str
    parameters: Mapping[str, object] = {}
    private: bool = True


def _endpoints(venue: Venue) -> list[Endpoint]:
    balances = [Endpoint(variant.balance, "private") for variant in PATH_VARIANTS.values()]
    return balances + list(venue.endpoints)


@lru_cache(maxsize=4096)
def _key_hash(api_key: str) -> str:
    return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]


@cache
def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def _unserved(cls: type["VenueFace"]) -> list[str]:
    """The methods that ccxt's ``has`` speaks of and that are not served."""
    spoken_of = ccxt.Exchange().has.keys() - cls.serves
    return [
        name
        for name in dir(cls)
        if not name.startswith("_")
        and _camel_case(name) in spoken_of
        and callable(getattr(cls, name))
    ]


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    special = {"ohlcv": "OHLCV", "adl": "ADL"}  # ccxt's own exceptions to the rule
    return first + "".join(special.get(word, word.capitalize()) for word in rest)


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of that name which says that it is not served; some of ccxt's would not."""

    def refuse(self: "VenueFace", *_: object, **__: object) -> None:
        raise NotSupported(
            f"{self.id} {method.__name__}() is not supported: only balances are served"
        )

    async def refuse_async(self: "VenueFace", *_: object, **__: object) -> None:
        refuse(self)

    return wraps(method)(refuse_async if iscoroutinefunction(method) else refuse)


def as_ccxt(error: Exception, where: str = "") -> BaseError:
    """The exception as one of ccxt's, with ``where`` before its text."""
    if isinstance(error, TransientError):
        error = error.error
    if isinstance(error, BaseError):
        return type(error)(f"{where}{error}")
    return ExchangeError(f"{where}unexpected {type(error).__name__}: {error}")


connection_attributes = attrgetter(*CONNECTION_ATTRIBUTES)
"""What an exchange's connections were made by; a user may set it at any time."""


def _check_reads(method: str, body: object = None) -> None:
    if method != "GET" or body is not None:
        raise NotSupported(f"only GET is supported, not {method}: this adapter only reads")


class _Codes(dict[str, str]):
    """Unified codes by currency id: ccxt makes a whole currency structure for each question."""

    def __init__(self, exchange: "VenueFace") -> None:
        self._exchange = exchange
        # What the codes were settled by.
        self.common = dict(getattr(exchange, "commonCurrencies", {}))
        self.by_id = getattr(exchange, "currencies_by_id", None)

    def __missing__(self, currency_id: str) -> str:
        code: str = self._exchange.safe_currency_code(currency_id)
        self[currency_id] = code
        return code


class _HttpxOnly:
    """Stands where ccxt keeps its requests session, which is never made nor used."""

    headers: ClassVar[dict[str, str]] = {}

    def close(self) -> None:
        """Nothing to close."""


if TYPE_CHECKING:
    from ccxt import Exchange as CcxtExchange
else:
    CcxtExchange = object


class VenueFace(CcxtExchange):  # type: ignore[misc]
    """Everything of an exchange that neither sends nor waits. Mixed into ccxt's classes."""

    venue: ClassVar[Venue]
    serves: ClassVar[frozenset[str]] = frozenset({"fetchBalance"})
    """Of ccxt's methods those that work; ``has`` and the methods themselves go by it."""

    logger = logging.getLogger("sunx_adapter")
    cafile: str | None = None

    def __init_subclass__(cls, venue: Venue | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if venue is not None:
            cls.venue = venue
            for endpoint in _endpoints(venue):
                path = endpoint.path.strip("/")
                words = [endpoint.access, "get", *re.split(r"[^A-Za-z0-9]+", path)]
                entry = Entry(path, endpoint.access, "GET", {"cost": 1})
                setattr(cls, "_".join(words), entry)
                setattr(cls, words[0] + "".join(word.capitalize() for word in words[1:]), entry)
            for name in _unserved(cls):
                setattr(cls, name, _refusing(getattr(cls, name)))

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self._closed = False
        self._clock_measured = False
        self._paced: tuple[float, ReadBudget] | None = None
        self._prepare()
        self._codes = _Codes(self)
        self._credentials: tuple[tuple[str | None, ...], Credentials] | None = None
        try:
            super().__init__(accepted_config(config or {}, type(self)))
            return
        except Exception as error:  # noqa: BLE001 - whatever ccxt makes of a configuration
            # Made anew below, so that no traceback shows this frame's config with its secrets.
            config, refusal = None, as_ccxt(error, f"{self.venue.id}: ")
        raise refusal

    def _prepare(self) -> None:
        """What the sender needs before anything else."""
        raise NotImplementedError

    # -- what ccxt asks ---------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What this exchange is and can do, in ccxt's terms."""
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
        """Whether a key and a secret or private key are there.

        Raises:
            AuthenticationError: if ``error`` and they are not; the message says what is missing.
        """
        missing = [] if self.apiKey else ["apiKey"]
        missing += [] if self.secret or self.privateKey else ["secret (or privateKey)"]
        if missing and error:
            raise AuthenticationError(f"{self.id} requires {' and '.join(missing)}")
        return not missing

    def sign(
        self,
        path: str,
        api: str | list[str] = "public",
        method: str = "GET",
        params: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """A request as ccxt's own ``fetch()`` takes it: ``url``, ``method``, ``body``, ``headers``.

        Raises:
            NotSupported: the method is not GET.
            AuthenticationError: the endpoint is private and keys are missing.
        """
        call = self._endpoint_call(path, api, method, params)
        return {"url": self._url(call), "method": "GET", "body": None, "headers": self._headers()}

    def parse_account_summary(self, info: Mapping[str, Any]) -> AccountSummary:
        """The account as a whole, from a balance's ``info``: no further request is needed.

        Raises:
            BadResponse: a figure is missing or no number, or the state is unknown.
        """
        return summarize(read_account(Document(info, info)))

    def enable_demo_trading(self, enable: bool) -> None:
        """Not served: these venues have no demo host."""
        if enable:
            raise NotSupported(f"{self.id} has no demo host; for a local one see Sandbox")

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            f"{self.id}: an exchange holds keys and connections, and is neither pickled nor "
            "copied; make another one from the same configuration"
        )

    def nonce(self) -> int:
        """The time that requests are signed for, ms UTC: the venue's, as far as it is known."""
        return int(time.time() * 1000) - int(self.options["timeDifference"])

    # -- one call, in steps that need no network --------------------------------------------

    def _balance_call(self, params: Mapping[str, Any]) -> tuple[Call, FreePolicy]:
        options = self.options
        if not isinstance(params, Mapping):
            raise BadRequest("params must be a mapping")
        rest = {key: value for key, value in params.items() if value is not None}
        for name, default, served in _SERVED:
            check_choice(f"{self.id} {name}", rest.pop(name, options.get(default)), served)
        policy = free_policy(rest.pop("free", options["free"]))
        check_choice("options['pathVariant']", options["pathVariant"], tuple(PATH_VARIANTS))
        path = PATH_VARIANTS[options["pathVariant"]].balance
        return Call(path, self._address(), rest), policy

    def _endpoint_call(
        self, path: str, api: str | list[str], method: str, params: Mapping[str, object] | None
    ) -> Call:
        _check_reads(method)
        access = api if isinstance(api, str) else api[0]
        # ccxt's endpoints have no leading slash, and one of HTX's ends with one.
        listed = next((e.path for e in _endpoints(self.venue) if e.path.strip("/") == path), None)
        return Call(
            listed or "/" + path.lstrip("/"), self._address(), params or {}, access == "private"
        )

    def _address(self) -> str:
        address: str = self.urls["api"]["rest"].replace("{hostname}", self.hostname)
        check_address(address)
        return address.rstrip("/")

    def _url(self, call: Call) -> str:
        if call.private:
            self.check_required_credentials()
            query = signed_query(
                self._current_credentials(),
                host=self.options.get("signatureHost") or _host(call.address),
                path=call.path,
                parameters=call.parameters,
                milliseconds=self.nonce(),
            )
        else:
            query = encode_query(call.parameters)
        return f"{call.address}{call.path}?{query}" if query else call.address + call.path

    def _current_credentials(self) -> Credentials:
        # Keys may be set or changed at any time, as with every ccxt exchange.
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
        return {**headers, **self.headers}

    def _request(self, url: str, headers: Mapping[str, str] | None = None) -> SignedRequest:
        request = SignedRequest(url, {**self._headers(), **(headers or {})})
        self.lastRestRequestTimestamp = self.milliseconds()
        # Without the query, which holds the key and the signature.
        self.last_request_url = url.partition("?")[0]
        if self.verbose:
            self.log("\nfetch Request:", self.id, "GET", self._redacted(url))
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("GET %s", self.last_request_url)
        return request

    def _document(self, answer: HttpAnswer, request: httpx.Request) -> Document:
        if self.enableLastHttpResponse:
            self.last_http_response = answer.body.decode("utf-8", "replace")
        if self.enableLastResponseHeaders:
            self.last_response_headers = answer.headers
        if self.verbose:
            text = answer.body.decode("utf-8", "replace")
            body = self._redacted(text, *signatures(request))
            self.log("\nfetch Response:", self.id, answer.status, body)
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("HTTP %s, %d bytes", answer.status, len(answer.body))
        document = read_envelope(answer, self.httpExceptions)
        if self.enableLastJsonResponse:
            self.last_json_response = copy.deepcopy(document.info)
        return document

    def _structure(self, answer: AccountAnswer, policy: FreePolicy) -> dict[str, Any]:
        self._settle_codes_anew()
        return balance_structure(
            answer,
            policy=policy,
            number=self.number,
            code_of=self._codes.__getitem__,
        )

    def _settle_codes_anew(self) -> None:
        # A user may add to commonCurrencies at any time.
        if (
            self.commonCurrencies != self._codes.common
            or self.currencies_by_id is not self._codes.by_id
        ):
            self._codes = _Codes(self)

    def _failure(self, error: Exception, method: str) -> BaseError:
        """The exception that the user sees: of the same class, with no secret in it or behind it.

        It is made anew, since the tracebacks of the original and of what caused it lead through
        frames that hold the signed request.
        """
        failure = as_ccxt(error, f"{self.id} {method}(): ")
        text = self._redacted(str(failure))
        # A venue's text must not steer a terminal that shows it.
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        return type(failure)(text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…")

    def _redacted(self, text: str, *more: str) -> str:
        return redact(text, api_key=self.apiKey, secrets=(self.secret, self.privateKey, *more))

    # -- what the senders need --------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ExchangeClosedByUser("the exchange was closed; make a new one")

    def _deadline(self) -> float:
        self._check_open()
        return time.monotonic() + float(self.timeout) / 1000

    def _tries(self, deadline: float) -> Tries:
        return Tries(
            deadline,
            self.options["maxRetriesOnFailure"],
            corrected=self._correct_clock,
            log=lambda text: self.logger.warning("%s", self._redacted(f"{self.id}: {text}")),
        )

    def _correct_clock(self, venue_time: int) -> int:
        """Go by the venue's clock from now on; tells by how many ms we were ahead of it."""
        ahead: int = self.nonce() - venue_time
        self.options["timeDifference"] += ahead
        return ahead

    def _time_call(self) -> Call:
        # Any answer has the time; where there is no endpoint for it, a refusal does.
        path = self.venue.time or PATH_VARIANTS[self.venue.path_variant].balance
        return Call(path, self._address(), private=False)

    def _measured(self, answer: HttpAnswer) -> int:
        told = venue_time(answer)
        if told is None:
            raise BadResponse("the answer has neither ts nor Date, so the clock cannot be measured")
        self._correct_clock(told)
        self._clock_measured = True
        difference: int = self.options["timeDifference"]
        return difference

    def _sending(self, deadline: float) -> dict[str, Any]:
        return {
            "deadline": deadline,
            "timeout_ms": self.timeout,
            "max_bytes": self.options.get("maxResponseBytes", MAX_RESPONSE_BYTES),
        }

    def _read_budget(self) -> ReadBudget | None:
        if not self.enableRateLimit:
            return None
        user = self.uid or _key_hash(self.apiKey)
        return shared_budget(
            self.options["rateLimitStorage"],
            f"{self.venue.id}:{user}",
            self.options.get("rateLimitFallback") == "memory",
        )

    def _pace(self) -> ReadBudget | None:
        """ccxt's ``rateLimit``, the ms between two reads, where it is slower than the venue's."""
        if not self.enableRateLimit or self.rateLimit <= RATE_LIMIT_MS:
            return None
        if self._paced is None or self._paced[0] != self.rateLimit:
            seconds = self.rateLimit / 1000
            pace = ReadBudget(MEMORY, f"pace:{id(self)}", requests=1, seconds=seconds, slack=0)
            self._paced = (self.rateLimit, pace)
        return self._paced[1]

    def use_connections_of(self, other: Self) -> None:
        """Share another exchange's connections, which stay its own to close.

        For many accounts in one process. Does nothing where the two connect in different ways
        (proxy, certificates) or this one was given a transport of its own.
        """
        same = self._connection_settings() == other._connection_settings()
        if same and self.options.get("transport") is None:
            self.options["transport"] = other._current_transport()

    def _current_transport(self) -> Any:
        """The transport that was given, else the exchange's own, made when first needed."""
        raise NotImplementedError

    def _given_transport(self, kind: type[TransportKind]) -> TransportKind | None:
        given = self.options.get("transport")
        if given is None or isinstance(given, kind):
            return given
        raise NotSupported(f"options['transport'] must be an httpx.{kind.__name__} here")

    def _budget_deadline(self, deadline: float) -> float:
        longest = self.options.get("rateLimitTimeout")
        return deadline if longest is None else min(deadline, time.monotonic() + longest / 1000)

    def _connection_settings(self) -> ConnectionSettings:
        if refused := next((name for name in REFUSED_PROXIES if getattr(self, name, None)), None):
            raise NotSupported(f"{refused!r} cannot be honoured: {PROXY_ADVICE}")
        proxy = next((proxy for proxy in self.check_proxy_settings() if proxy), None)
        trust_env = self.trust_env or self.aiohttp_trust_env or self.requests_trust_env
        if proxy is None and trust_env:
            proxy = environment_proxy(self._address())
        return ConnectionSettings(proxy, self.cafile, bool(trust_env))

    def _given_markets(self) -> dict[str, Any]:
        if not self.markets_by_id:
            self.set_markets(self.markets or [])
        markets: dict[str, Any] = self.markets
        return markets

    def _check_fetch(self, url: str, method: str, body: object) -> None:
        check_address(url)
        _check_reads(method, body)


Method = TypeVar("Method", bound=Callable[..., Any])


def _public(method: Method) -> Method:
    """Let a method fail with nothing but what the user may see."""

    @wraps(method)
    def call(self: VenueFace, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - nothing else reaches the user, see _failure()
            failure = self._failure(error, method.__name__)
        raise failure

    return cast("Method", call)


class SyncFace(VenueFace):
    """How the synchronous classes send."""

    session = _HttpxOnly()
    _transport: httpx.BaseTransport | None = None
    _made_by: Any = None

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        # As ccxt's asynchronous ones, an exchange may be opened again.
        self._closed = False
        self._closing.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, clean_instance_data: bool = False) -> None:
        """Close the connections that are the exchange's own.

        Calls under way in other threads end with ``ExchangeClosedByUser``, later ones too.
        """
        self._closed = True
        self._closing.set()
        with self._lock:
            transport, self._transport = self._transport, None
        if transport is not None and self._made_by and self._made_by[0] == os.getpid():
            transport.close()
        if clean_instance_data:
            self.clean_rest_data()

    @_public
    def fetch_balance(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The account's balance, exactly.

        Args:
            params: ``type`` (``"swap"``, ``"future"``), ``subType`` (``"linear"``), ``marginMode``
                (``"cross"``), ``free`` (``"margin"``, ``"available"``, ``"withdrawable"``); any
                other parameter is signed and sent.

        Returns:
            ccxt's balance structure, see :func:`sunx_adapter.balance.balance_structure`.

        Raises:
            ccxt.BaseError: the exception of the error table; never an empty balance instead.
        """
        call, policy = self._balance_call(params or {})
        document, body = self._read(call)
        return self._structure(read_account(document, body), policy)

    @_public
    def fetch_account_summary(self, params: Mapping[str, Any] | None = None) -> AccountSummary:
        """The account's state and figures as a whole; parameters as in ``fetch_balance``."""
        call, _ = self._balance_call(params or {})
        return summarize(read_account(*self._read(call)))

    def load_markets(
        self,
        reload: bool = False,  # noqa: ARG002
        params: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """The markets given in the configuration, else none: a balance needs none."""
        return self._given_markets()

    @_public
    def fetch2(
        self,
        path: str,
        api: str | list[str] = "public",
        method: str = "GET",
        params: Mapping[str, Any] | None = None,
        *_more: Any,
        **_rest: Any,
    ) -> Any:
        """ccxt's way to an endpoint, taken by the implicit methods: the answer as it came."""
        document, _body = self._read(self._endpoint_call(path, api, method, params))
        return document.info

    @_public
    def fetch(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """ccxt's way to an address, for what :meth:`sign` gave: the answer as it came."""
        self._check_fetch(url, method, body)
        request = self._request(url, headers)
        try:
            return self._document(self._send(request, self._deadline()), request).info
        except (BaseError, TransientError) as error:
            raise without_signature(error, request) from None

    @_public
    def load_time_difference(self, params: Mapping[str, Any] | None = None) -> int:  # noqa: ARG002
        """Measure, and go by from now on, how many ms our clock is ahead of the venue's."""
        return self._measure_clock(self._deadline())

    def _measure_clock(self, deadline: float) -> int:
        return self._measured(self._send(self._request(self._url(self._time_call())), deadline))

    def _read(self, call: Call) -> tuple[Document, bytes]:
        deadline = self._deadline()
        if call.private:
            self.check_required_credentials()
            if self.options["adjustForTimeDifference"] and not self._clock_measured:
                self._measure_clock(deadline)
        tries = None
        while True:
            try:
                return self._read_once(call, deadline)
            except TransientError as failure:
                self._check_open()
                tries = tries or self._tries(deadline)
                self._closing.wait(tries.after(failure))
            except BaseError as error:
                self._check_open()
                raise (tries.given_up(error) if tries else error) from None
            self._check_open()

    def _read_once(self, call: Call, deadline: float) -> tuple[Document, bytes]:
        budget = self._read_budget() if call.private else None
        for limit in (budget, self._pace() if call.private else None):
            if limit is not None:
                limit.take(self._budget_deadline(deadline), self._closing)
        self._check_open()
        request = self._request(self._url(call))
        try:
            answer = self._send(request, deadline)
            if budget is not None:
                budget.follow(answer.headers)
            return self._document(answer, request), answer.body
        except (BaseError, TransientError) as error:
            raise without_signature(error, request) from None

    def _send(self, request: httpx.Request, deadline: float) -> HttpAnswer:
        return synchronous.send(self._current_transport(), request, **self._sending(deadline))

    def _current_transport(self) -> httpx.BaseTransport:
        if (given := self._given_transport(httpx.BaseTransport)) is not None:
            return given
        with self._lock:
            # Another process's connections are not for the child of a fork.
            made_by = (os.getpid(), connection_attributes(self))
            if self._transport is None or self._made_by != made_by:
                self._check_open()
                self._made_by = made_by
                self._transport = synchronous.DeadlineTransport(self._connection_settings())
            return self._transport


class Sunx(SyncFace, ccxt.Exchange, venue=SUNX):  # type: ignore[misc]
    """SunX, synchronous: ``Sunx({"apiKey": …, "secret": …}).fetch_balance()``."""


class HtxFutures(SyncFace, ccxt.Exchange, venue=HTX_FUTURES):  # type: ignore[misc]
    """HTX's USDT-M futures (v5), synchronous."""
