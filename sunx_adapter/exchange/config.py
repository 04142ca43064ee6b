"""Checks the configuration: unsupported settings of ccxt are refused, never silently ignored."""

import ipaddress
import os
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Annotated, Any, Final, TypedDict, get_args
from urllib.parse import unquote, urlsplit

import msgspec
from ccxt.base.errors import BadRequest, NotSupported

from sunx_adapter.balance import free_policy
from sunx_adapter.exchange.budget import MEMORY
from sunx_adapter.exchange.redis_windows import redis_windows
from sunx_adapter.hints import did_you_mean
from sunx_adapter.venue import PathVariantName
from sunx_adapter.wire.route import is_sendable_header
from sunx_adapter.wire.settings import ConnectionSettings

_DESCRIPTION: Final = {
    # Part of describe(); a user may override it, and ccxt's own code reads it.
    *("id", "name", "countries", "version", "certified", "pro", "alias", "has", "status"),
    *("features", "fees", "limits", "precision", "precisionMode", "paddingMode", "timeframes"),
    *("markets", "currencies", "commonCurrencies", "substituteCommonCurrencyCodes"),
    *("httpExceptions", "userAgents"),
    *("enableLastHttpResponse", "enableLastJsonResponse", "enableLastResponseHeaders"),
}
PROXIES: Final = (
    *("httpProxy", "http_proxy", "httpsProxy", "https_proxy", "socksProxy", "socks_proxy"),
)
STREAM_PROXIES: Final = ("wsProxy", "ws_proxy", "wssProxy", "wss_proxy")
PROXY_ADVICE: Final = "use one of httpProxy, httpsProxy and socksProxy"
REFUSED_PROXIES: Final = (
    *("proxy", "proxyUrl", "proxy_url", "proxies", "aiohttp_proxy"),
    *("proxyUrlCallback", "proxy_url_callback"),
)
_INSTEAD: Final = {
    "session": "this adapter makes its own connections; set options['transport'] to use httpx",
    "verify": "certificates are always verified; name your own authority's file with cafile",
    "validateServerSsl": "certificates are always verified; name your own authority's file with "
    "cafile",
    **dict.fromkeys(REFUSED_PROXIES, PROXY_ADVICE),
    "password": "these venues have no passphrase",
    "sandbox": "these venues have no test host; for a local one see sunx_adapter.Sandbox",
    "testnet": "these venues have no test host; for a local one see sunx_adapter.Sandbox",
    "returnResponseHeaders": "they are in last_response_headers",
}
# Settings that ccxt reads from the configuration, without an attribute of that name.
_KNOWN_BESIDES: Final = {"sandbox", "testnet", "passphrase", "own_session"}

_LONGEST_SOCKS_WORD: Final = 255

MAX_TIMEOUT_MS: Final = 1e9
_Positive = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_MS)]


class _Addresses(TypedDict, total=False):
    rest: str
    stream: str


class _Urls(TypedDict, total=False):
    api: _Addresses


_URLS: Final = {"api", "www", "doc", "logo", "fees", "test", "referral", "api_management"}


class _Options(TypedDict, total=False):
    """The types of our options. Other options are accepted, as with ccxt."""

    pathVariant: str
    signatureHost: str
    free: str
    defaultType: str
    defaultSubType: str
    defaultMarginMode: str
    transport: object
    rateLimitStorage: str
    rateLimitTimeout: _Positive
    rateLimitFallback: str
    maxRetriesOnFailure: Annotated[int, msgspec.Meta(ge=0)]
    maxResponseBytes: Annotated[int, msgspec.Meta(ge=1)]
    adjustForTimeDifference: bool
    timeDifference: int
    streamGapTimeout: _Positive
    streamSilenceTimeout: _Positive
    streamSnapshotTimeout: _Positive
    streamReconnectDelay: _Positive


_OTHER_OPTIONS: Final = {"setMarginMode", "maxRetriesOnFailureDelay"}
"""Options of ccxt's own exchanges that look like ours."""


class _Settings(TypedDict, total=False):
    """The types of our settings."""

    apiKey: str
    secret: str
    privateKey: str
    uid: str | int
    timeout: _Positive
    enableRateLimit: bool
    rateLimit: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    hostname: str
    cafile: str
    headers: dict[str, str]
    userAgent: str | dict[str, str]
    urls: _Urls
    options: _Options


_SETTINGS: Final = {
    *_Settings.__annotations__,
    *PROXIES,
    *STREAM_PROXIES,
    *("user_agent", "trust_env", "aiohttp_trust_env", "requests_trust_env", "asyncio_loop"),
    *("verbose", "logger", "number", "timeout_on_exit"),
}
_HONOURED: Final = _SETTINGS | _DESCRIPTION
_MISSPELT_AS: Final = _SETTINGS | _INSTEAD.keys()
"""Names that are compared with unknown names, to find misspellings."""


def accepted_config(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The checked configuration, without the settings that are ``None``: they count as not given.

    Args:
        config: the user's configuration.
        kind: the exchange's class, which has ccxt's settings as attributes.

    Raises:
        NotSupported: a setting of ccxt has a value and cannot be honoured here.
        BadRequest: a value has the wrong type, or a setting or an option is misspelt.
    """
    given = {key: value for key, value in config.items() if value is not None}
    # As with ccxt, an empty proxy counts as not given.
    given = {key: value for key, value in given.items() if value or key not in PROXIES}
    if isinstance(options := given.get("options"), dict):
        given["options"] = {key: value for key, value in options.items() if value is not None}
    unknown = []
    for key, value in given.items():
        if key in _HONOURED:
            continue
        default = getattr(kind, str(key), None)
        if key not in _KNOWN_BESIDES and not hasattr(kind, str(key)):
            unknown.append(key)
        elif value not in ("", default) and (value or default):
            advice = f": {_INSTEAD[key]}" if key in _INSTEAD else ""
            raise NotSupported(f"the setting {key!r} cannot be honoured{advice}")
    check_spelling("setting", unknown, _MISSPELT_AS)
    _check_kinds(given)
    options = given.get("options", {}).keys() - _OTHER_OPTIONS
    check_spelling("option", options, _Options.__annotations__)
    _check_values(given)
    return given


def check_spelling(what: str, names: Iterable[object], known: Collection[str]) -> None:
    """Refuse misspelt names, which are unknown but similar to a known name.

    Other unknown names are accepted, because hosts pass their own.

    Raises:
        BadRequest: a name is misspelt; the message suggests the right one.
    """
    for name in names:
        if hint := did_you_mean(str(name), known):
            raise BadRequest(f"unknown {what} {name!r}{hint}")


def _check_kinds(given: Mapping[str, Any]) -> None:
    try:
        msgspec.convert(given, _Settings)
        urls = given.get("urls", {})
        unknown = urls.keys() - _URLS or urls.get("api", {}).keys() - _Addresses.__annotations__
        if not unknown:
            return
        reason, place = f"unknown key {min(unknown)!r}", "`$.urls`"
    except msgspec.ValidationError as error:
        # "Expected `str`, got `int` - at `$.secret`": types and places, never values.
        reason, _, place = str(error).partition(" - at ")
    if "`$.urls" in place:
        reason += '; it must look like {"api": {"rest": "https://…", "stream": "wss://…"}}'
    raise BadRequest(f"setting {place.strip('`$.')}: {reason}")


def _check_values(given: Mapping[str, Any]) -> None:
    for address in given.get("urls", {}).get("api", {}).values():
        check_address(address)
    proxies = [key for key in PROXIES if key in given]
    if len(proxies) > 1:
        raise NotSupported(f"{' and '.join(proxies)} are given: {PROXY_ADVICE}")
    for key in proxies:
        _check_proxy(key, given[key])
    for name, text in given.get("headers", {}).items():
        _check_header(name, text)
    if "cafile" in given:
        _check_certificates(given["cafile"])
    if "number" in given:
        _check_number(given["number"])
    options = given.get("options", {})
    check_choice("options['pathVariant']", options.get("pathVariant"), get_args(PathVariantName))
    if "free" in options:
        free_policy(options["free"])
    if (storage := options.get("rateLimitStorage", MEMORY)) != MEMORY:
        redis_windows(storage, os.getpid())
    check_choice("options['rateLimitFallback']", options.get("rateLimitFallback"), ("memory",))


def _check_header(name: str, text: str) -> None:
    if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
        raise NotSupported(f"the header {name} cannot be set")
    if not is_sendable_header(name, text):
        raise BadRequest(f"the header {name!r} cannot be sent: it must be plain ASCII text")


def _check_proxy(key: str, proxy: object) -> None:
    # The message quotes no part of the URL: if it is malformed, any part may be the password.
    try:
        parts = urlsplit(proxy if isinstance(proxy, str) else "")
        parts.port  # noqa: B018 - raises ValueError for an invalid one
    except ValueError:
        parts = urlsplit("")
    scheme = parts.scheme
    whole = not (parts.path.strip("/") or parts.query or parts.fragment) and parts.hostname
    if scheme not in ("http", "https", "socks5", "socks5h") or not whole:
        raise BadRequest(
            f"{key} must be a URL like http://host:port or socks5://user:password@host:port, with "
            "special characters in user name and password percent-encoded"
        )
    if not scheme.startswith("socks"):
        return
    if find_spec("socksio") is None:
        raise NotSupported(f"{key}: for SOCKS install sunx-adapter[socks]")
    for word in (parts.username, parts.password):
        plain = unquote(word or "")
        if not plain.isascii() or len(plain) > _LONGEST_SOCKS_WORD:
            raise BadRequest(f"{key}: SOCKS user names and passwords have up to 255 ASCII letters")


def _check_certificates(file: str) -> None:
    try:
        ConnectionSettings(cafile=file).tls_context()
        return
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or "no certificates in it"
    raise BadRequest(f"cafile {file!r} cannot be used: {reason}")


def _check_number(number: object) -> None:
    try:
        if callable(number):
            number("-0.5")
            return
    except Exception:  # noqa: BLE001, S110 - it is the user's own
        pass
    raise BadRequest("number must convert decimal text: float, str or decimal.Decimal")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is neither ``None`` nor a choice.

    Raises:
        NotSupported: the message lists the choices.
    """
    if value is not None and value not in choices:
        raise NotSupported(f"{name} = {value!r} is not supported; it can be {', '.join(choices)}")


@lru_cache(maxsize=256)
def check_address(address: str) -> None:
    """Refuse an address to which no signed request may be sent.

    Raises:
        NotSupported: it is unencrypted and not on this machine, or not an HTTP or WebSocket URL.
    """
    scheme = address.partition("://")[0].lower()
    if scheme not in ("https", "wss", "http", "ws"):
        raise NotSupported(
            f"{address!r} is not an address; it must begin with https:// (wss:// for the stream), "
            "or with http:// on this machine"
        )
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises ValueError for an invalid one
        host = (parts.hostname or "").encode("ascii").decode()
    except ValueError:
        host = ""
    if not host or ".." in host or set("@?#").intersection(address.split("/")[2]):
        raise NotSupported(
            f"{address.rpartition('@')[2]!r} is not an address: it needs a host in ASCII, may have "
            "a port, and must not have a user name"
        )
    if scheme in ("http", "ws") and not _is_loopback(host):
        raise NotSupported(
            f"{address!r} is not encrypted: plain http and ws are for this machine only"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
