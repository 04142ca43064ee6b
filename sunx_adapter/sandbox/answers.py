"""What the sandbox answers: a request and the time in, status, headers and body out. No I/O."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

from sunx_adapter.sandbox.accounts import SandboxAccount
from sunx_adapter.sandbox.checks import RefusalShape, Refused, Request, authenticate
from sunx_adapter.sandbox.holdings import EXTRA_ROW_FIELDS
from sunx_adapter.venue import PATH_VARIANTS, READ_LIMIT, PathVariantName, ReadLimit

MULTI_ASSETS: Final = ("BTC", "USDT", "ETH")
"""Assets usable as collateral, as both variants list them."""

SUCCESS_CODE: Final = 200
SUCCESS_STATUS: Final = "ok"
TOO_MANY_READS: Final = 1032

JSON_TYPE: Final = "application/json;charset=utf-8"
HTML_TYPE: Final = "text/html"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back, before compression and the headers that every answer has.

    Attributes:
        status: the HTTP status.
        body: the bytes.
        code: what the body says: the venue's code, ``"ok"``, or the HTTP status of a page.
        uid: of the account that signed, if one did.
        headers: the content type, and the rate limit's on signed answers.
    """

    status: int
    body: bytes = field(repr=False)
    code: int | str
    uid: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether the venue did what was asked."""
        return self.code in (SUCCESS_CODE, SUCCESS_STATUS)


@dataclass(frozen=True, slots=True)
class Quota:
    """Where a user stands within the read limit.

    Attributes:
        limit: the limit itself.
        remaining: reads left now.
        reset_ms: until the oldest counted read no longer counts.
    """

    limit: ReadLimit
    remaining: int
    reset_ms: int

    def headers(self) -> dict[str, str]:
        """The headers of the older futures manual."""
        return {
            "ratelimit-limit": str(self.limit.requests),
            "ratelimit-interval": str(self.limit.seconds * 1000),
            "ratelimit-remaining": str(self.remaining),
            "ratelimit-reset": str(self.reset_ms),
        }


class ReadLimiter:
    """Counts reads per uid in a moving window; a refused read does not count."""

    def __init__(self, limit: ReadLimit = READ_LIMIT) -> None:
        self._limit = limit
        self._reads: dict[str, deque[int]] = {}

    def quota(self, uid: str, milliseconds: int) -> Quota:
        """Where the user stands, ``milliseconds`` being now."""
        reads = self._counted(uid, milliseconds)
        reset = reads[0] + self._limit.seconds * 1000 - milliseconds if reads else 0
        return Quota(self._limit, self._limit.requests - len(reads), reset)

    def take(self, uid: str, milliseconds: int) -> bool:
        """Count one read, if there is one left."""
        reads = self._counted(uid, milliseconds)
        if len(reads) >= self._limit.requests:
            return False
        reads.append(milliseconds)
        return True

    def _counted(self, uid: str, milliseconds: int) -> deque[int]:
        reads = self._reads.setdefault(uid, deque())
        while reads and milliseconds - reads[0] >= self._limit.seconds * 1000:
            reads.popleft()
        return reads


@dataclass(frozen=True, slots=True)
class _SignedEndpoint:
    variant: PathVariantName
    data: Callable[[SandboxAccount, PathVariantName], object]


def _balance(account: SandboxAccount, variant: PathVariantName) -> object:
    if variant == "v5" and account.asset_mode == 0:
        raise Refused(4002, "The account is not in the multi-assets collateral mode", shape="msg")
    balance = dict(account.balance)
    if variant == "sapi/v1" or not account.extra_row_fields:
        balance = _documented(balance)
    return balance


def _documented(balance: dict[str, Any]) -> dict[str, Any]:
    rows = balance.get("details")
    if not isinstance(rows, list):
        return balance
    # An account may be given a balance that no venue would send, to see what a client makes of it.
    documented = [
        {name: row[name] for name in row if name not in EXTRA_ROW_FIELDS}
        if isinstance(row, Mapping)
        else row
        for row in rows
    ]
    return {**balance, "details": documented}


def _multi_assets(_account: SandboxAccount, _variant: PathVariantName) -> object:
    return {"multi_assets": MULTI_ASSETS}


def _asset_mode(account: SandboxAccount, _variant: PathVariantName) -> object:
    return {"asset_mode": account.asset_mode}


def _heartbeat(milliseconds: int) -> dict[str, object]:
    parts = ("", "swap_", "option_", "linear_swap_")
    data: dict[str, object] = {}
    for part in parts:
        data |= {f"{part}heartbeat": 1, f"{part}estimated_recovery_time": None}
    return {"status": "ok", "data": data, "ts": milliseconds}


def _timestamp(milliseconds: int) -> dict[str, object]:
    return {"status": "ok", "ts": milliseconds}


_SIGNED: Final = {
    PATH_VARIANTS["sapi/v1"].balance: _SignedEndpoint("sapi/v1", _balance),
    PATH_VARIANTS["v5"].balance: _SignedEndpoint("v5", _balance),
    "/sapi/v1/public/multi_assets_margin": _SignedEndpoint("sapi/v1", _multi_assets),
    "/v5/market/multi_assets_margin": _SignedEndpoint("v5", _multi_assets),
    "/v5/account/asset_mode": _SignedEndpoint("v5", _asset_mode),
}
_PUBLIC: Final[dict[str, Callable[[int], dict[str, object]]]] = {
    "/api/v1/timestamp": _timestamp,
    "/heartbeat/": _heartbeat,
}


class Desk:
    """Answers requests for a set of accounts. Its only state is who has read how often.

    Args:
        accounts: with names and keys that differ.
        limiter: the read limit.
    """

    def __init__(
        self, accounts: Iterable[SandboxAccount], limiter: ReadLimiter | None = None
    ) -> None:
        self._accounts = {account.api_key: account for account in accounts}
        self._limiter = limiter or ReadLimiter()

    def put(self, account: SandboxAccount) -> None:
        """Take an account's new state; its key is known already."""
        self._accounts[account.api_key] = account

    def answer(self, request: Request, milliseconds: int, *, ahead_ms: int = 0) -> Answer:
        """The answer to a request.

        Args:
            request: as it came in.
            milliseconds: the time, ms UTC; the read limit goes by it.
            ahead_ms: how far the venue's clock is ahead; it is what requests are checked against,
                and what answers tell.
        """
        if not (request.path.isascii() and request.query.isascii()):
            return page(HTTPStatus.BAD_REQUEST)
        public = _PUBLIC.get(request.path)
        signed = _SIGNED.get(request.path)
        if public is None and signed is None:
            return page(HTTPStatus.NOT_FOUND)
        if request.method != "GET":
            return page(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"})
        if signed is not None:
            return self._signed(request, signed, milliseconds, milliseconds + ahead_ms)
        assert public is not None
        return json_answer(public(milliseconds + ahead_ms), SUCCESS_STATUS)

    def _signed(
        self, request: Request, endpoint: _SignedEndpoint, milliseconds: int, told_ms: int
    ) -> Answer:
        uid: str | None = None
        try:
            account = authenticate(
                request, self._accounts, variant=endpoint.variant, milliseconds=told_ms
            )
            uid = account.uid
            _check_account(account, endpoint.variant)
            data = endpoint.data(account, endpoint.variant)
            self._check_limit(uid, milliseconds)
            answer = json_answer(_success(endpoint.variant, data, told_ms), SUCCESS_CODE)
        except Refused as refusal:
            answer = refusal_answer(refusal, told_ms)
        if uid is None:
            return answer
        headers = {**answer.headers, **self._limiter.quota(uid, milliseconds).headers()}
        return replace(answer, uid=uid, headers=headers)

    def _check_limit(self, uid: str, milliseconds: int) -> None:
        if not self._limiter.take(uid, milliseconds):
            raise Refused(
                TOO_MANY_READS,
                "The number of access exceeded limit",
                http_status=HTTPStatus.TOO_MANY_REQUESTS,
            )


def _check_account(account: SandboxAccount, variant: PathVariantName) -> None:
    if account.refusal is not None:
        shape: RefusalShape = "msg" if variant == "v5" else "message"
        raise Refused(account.refusal.code, account.refusal.message, shape=shape)


def _success(variant: PathVariantName, data: object, milliseconds: int) -> dict[str, object]:
    """The envelope; the two pages print its keys in different order."""
    if variant == "v5":
        return {"code": 200, "data": data, "message": "Success", "ts": milliseconds}
    return {"code": 200, "message": "Success", "data": data, "ts": milliseconds}


def refusal_answer(refusal: Refused, milliseconds: int) -> Answer:
    """The venue's no, in the refusal's shape."""
    code, message = refusal.code, refusal.message
    body: dict[str, object]
    match refusal.shape:
        case "status":
            body = {"status": "error", "err_code": code, "err_msg": message, "ts": milliseconds}
        case "hyphen":
            body = {"status": "error", "err-code": code, "err-msg": message, "data": None}
        case "msg":
            body = {"code": str(code), "msg": message, "data": None, "ts": str(milliseconds)}
        case "message":
            body = {"code": code, "message": message}
    return json_answer(body, code, refusal.http_status)


def json_answer(body: object, code: int | str, status: int = HTTPStatus.OK) -> Answer:
    """A JSON text as the venues write it."""
    return Answer(status, json_text(body), code, headers={"Content-Type": JSON_TYPE})


def json_text(body: object) -> bytes:
    """The JSON text, without blanks."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def page(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """The page of the web server in front of a venue, for what the venue itself never sees."""
    title = f"{status:d} {status_phrase(status)}"
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return Answer(
        status, body.encode(), status, headers={"Content-Type": HTML_TYPE, **(headers or {})}
    )


def status_phrase(status: int) -> str:
    """``"Bad Gateway"``; empty for a status that HTTP does not know."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
