"""Checks everything that a bot needs to read its balance, in order."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from ccxt.base.errors import (
    AccountNotEnabled,
    AccountSuspended,
    AuthenticationError,
    BaseError,
    InvalidNonce,
    PermissionDenied,
)

from sunx_adapter.keys import missing_keys
from sunx_adapter.protocol.account import AccountSummary
from sunx_adapter.protocol.document import whole_number
from sunx_adapter.protocol.signing import Ed25519Signer
from sunx_adapter.text import printable
from sunx_adapter.venue import Venue
from sunx_adapter.wire.background import Background
from sunx_adapter.wire.dial import resolve

Status = Literal["ok", "warning", "failed", "skipped"]

CLOCK_WARNING_MS = 30_000
_COPY_ADVICE = "copy it again from the venue's API key page"
MULTI_ASSETS_MODE = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        status: ``failed`` if no balance can be read; ``warning`` if that may happen soon.
        seen: what the check found.
        advice: what to do, if anything.
    """

    check: str
    status: Status
    seen: str
    advice: str = ""


class Exchange(Protocol):
    """The part of ``Sunx`` and ``HtxFutures`` that the checks use."""

    venue: Venue
    urls: dict[str, Any]
    hostname: str
    timeout: float
    apiKey: str | None  # noqa: N815 - ccxt's name
    secret: str | None
    privateKey: str | None  # noqa: N815 - ccxt's name
    last_response_headers: Mapping[str, str] | None

    def load_time_difference(self) -> int: ...  # noqa: D102
    def fetch_account_summary(self) -> AccountSummary: ...  # noqa: D102
    def request(self, path: str, api: str) -> Any: ...  # noqa: D102


class _Stop(Exception):  # noqa: N818 - control flow, not an error
    """The remaining checks cannot succeed."""


def diagnose(exchange: Exchange, sources: list[str], name: str | None = None) -> Iterator[Finding]:
    """Check one account; yields each finding as soon as its check has ended.

    Args:
        exchange: made with the user's configuration and ``maxRetriesOnFailure`` 0.
        sources: the places that the keys were read from, for messages.
        name: the account's name; default: the exchange's id.
    """
    checks: list[Callable[[Exchange], Iterator[Finding]]] = [_name, _connection, _heartbeat]
    keys = _keys(exchange, sources, name or exchange.venue.id)
    yield keys
    if keys.status == "ok":
        checks += [_account]
    try:
        for check in checks:
            yield from check(exchange)
    except _Stop:
        return
    if keys.status != "ok":
        yield Finding("account", "skipped", "cannot be read without keys")


def _keys(exchange: Exchange, sources: list[str], name: str) -> Finding:
    """Whether there are keys, and whether they are well-formed."""
    given = {"apiKey": exchange.apiKey, "secret": exchange.secret}
    private_key = exchange.privateKey
    where = ", ".join(sources)
    if missing := missing_keys(name, {**given, "privateKey": private_key}):
        found = f"found only {where}" if sources else "not found"
        return Finding("keys", "failed", found, f"set {' and '.join(missing)}")
    for key, text in given.items():
        if fault := _malformed(text or ""):
            return Finding("keys", "failed", f"{key} {fault} (from {where})", _COPY_ADVICE)
    if private_key:
        try:
            Ed25519Signer(private_key)
        except AuthenticationError as error:
            return Finding("keys", "failed", f"{error} (from {where})", _COPY_ADVICE)
    return Finding("keys", "ok", f"found in {where}")


def _malformed(text: str) -> str:
    """Why the text cannot be a key or a secret, without quoting it; empty if it can."""
    if "…" in text or "..." in text:
        return "is a placeholder from an example"
    if not (text.isascii() and text.isprintable()) or " " in text:
        return "contains a space, a control character or a non-ASCII character"
    return ""


def _name(exchange: Exchange) -> Iterator[Finding]:
    address = urlsplit(exchange.urls["api"]["rest"].replace("{hostname}", exchange.hostname))
    host = address.hostname or ""
    try:
        lookup = Background(lambda: resolve(host, address.port or 443))
        found = lookup.wait(time.monotonic() + exchange.timeout / 1000)
    except OSError as error:
        reason = str(error) or f"looking up {host} timed out"
        advice = "check the name, and this machine's network and DNS"
        yield Finding("name", "failed", reason, advice)
        raise _Stop from None
    addresses = dict.fromkeys(str(each[0]) for _, each in found)
    known = "" if list(addresses) == [host] else f" is {', '.join(addresses)}"
    yield Finding("name", "ok", f"{host}{known}")


def _connection(exchange: Exchange) -> Iterator[Finding]:
    try:
        ahead = exchange.load_time_difference()
    except BaseError as error:
        advice = "check firewall, proxy, address and certificates"
        yield Finding("connection", "failed", _error_text(error), advice)
        raise _Stop from None
    secure = exchange.urls["api"]["rest"].startswith("https")
    yield Finding("connection", "ok", "works, with verified TLS" if secure else "works")
    off = f"this machine's clock is {abs(ahead) / 1000:.1f} s {'ahead' if ahead > 0 else 'behind'}"
    if abs(ahead) < CLOCK_WARNING_MS:
        yield Finding("clock", "ok", off)
    else:
        # Not failed: calls adjust to the venue's clock after one refused request.
        yield Finding("clock", "warning", off, "set the clock, for example by NTP")


def _heartbeat(exchange: Exchange) -> Iterator[Finding]:
    if not any(endpoint.path == "/heartbeat/" for endpoint in exchange.venue.endpoints):
        return
    try:
        beating = exchange.request("heartbeat", "public")["data"]["linear_swap_heartbeat"]
    except (BaseError, KeyError, TypeError) as error:
        yield Finding("venue", "warning", f"cannot read its heartbeat: {_error_text(error)}")
        return
    if str(beating) == "1":
        yield Finding("venue", "ok", "is up")
    else:
        yield Finding("venue", "failed", "is down for maintenance", "wait until it is up again")


def _account(exchange: Exchange) -> Iterator[Finding]:
    mode = _asset_mode(exchange)
    try:
        summary = exchange.fetch_account_summary()
    except BaseError as error:
        yield from _refused(error)
        if mode is not None:
            yield mode
        return
    yield Finding("key and signature", "ok", "accepted")
    yield Finding("permission and address", "ok", "reading is allowed from this address")
    if mode is not None:
        yield mode
    yield _state(summary)
    yield _limit(exchange.last_response_headers or {})


def _refused(error: BaseError) -> Iterator[Finding]:
    # The message of each exception includes the advice from the error table.
    accepted = Finding("key and signature", "ok", "accepted")
    match error:
        case AccountNotEnabled() | AccountSuspended():
            yield accepted
            yield Finding("account", "failed", _error_text(error))
        case PermissionDenied():
            yield accepted
            yield Finding("permission and address", "failed", _error_text(error))
        case AuthenticationError() | InvalidNonce():
            yield Finding("key and signature", "failed", _error_text(error))
        case _:
            yield Finding("balance", "failed", _error_text(error))


def _asset_mode(exchange: Exchange) -> Finding | None:
    path = exchange.venue.asset_mode
    if path is None:
        return None
    try:
        mode = whole_number(exchange.request(path.strip("/"), "private")["data"]["asset_mode"])
    except (BaseError, KeyError, TypeError):
        mode = None
    if mode is None:
        return None  # the balance check reports the problem
    if mode == MULTI_ASSETS_MODE:
        return Finding("collateral mode", "ok", "multi-assets")
    return Finding(
        "collateral mode",
        "failed",
        f"single-asset (asset_mode {mode})",
        "the balance endpoint serves multi-assets accounts only: change the mode at the venue, or "
        "read the account through HTX's older /linear-swap-api/ endpoints, as ccxt's htx does",
    )


def _state(summary: AccountSummary) -> Finding:
    state = summary.state
    if not (forbidden := state.forbids):
        return Finding("account state", "ok", state.name)
    advice = "see the venue's account page; the balance can still be read"
    return Finding(
        "account state", "warning", f"{state.name}: no {', no '.join(forbidden)}", advice
    )


def _limit(headers: Mapping[str, str]) -> Finding:
    remaining, limit = headers.get("ratelimit-remaining"), headers.get("ratelimit-limit")
    if remaining is None:
        return Finding("read limit", "ok", "the venue does not report the reads left")
    left = printable(f"{remaining[:20]} of {(limit or '?')[:20]} reads left")
    if remaining == "0":
        return Finding("read limit", "warning", left, "another program reads with this user's keys")
    return Finding("read limit", "ok", left)


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
