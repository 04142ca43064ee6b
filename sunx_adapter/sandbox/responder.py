"""What the venue answers: a request and the time in, an answer out. No I/O.

Nothing goes wrong here on purpose; :mod:`~sunx_adapter.sandbox.fault_table` changes the answers.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from sunx_adapter.sandbox.accounts import SINGLE_ASSET_MODE, AccountBook, SandboxAccount
from sunx_adapter.sandbox.answers import (
    SUCCESS_CODE,
    SUCCESS_STATUS,
    HttpAnswer,
    HttpRequest,
    RefusalShape,
    Refused,
    json_answer,
    page,
    refusal_answer,
    too_many_reads,
)
from sunx_adapter.sandbox.holdings import EXTRA_ROW_FIELDS
from sunx_adapter.sandbox.signatures import authenticate
from sunx_adapter.venue import PATH_VARIANTS, READ_LIMIT, PathVariantName

MULTI_ASSETS: Final = ("BTC", "USDT", "ETH")
"""Assets usable as collateral, as both variants list them."""

_WINDOW_MS: Final = READ_LIMIT.seconds * 1000


class ReadLimiter:
    """Counts reads per uid in a moving window; a refused read does not count."""

    def __init__(self) -> None:
        self._reads: defaultdict[str, deque[int]] = defaultdict(deque)

    def take(self, uid: str, milliseconds: int) -> None:
        """Count one read, ``milliseconds`` being now.

        Raises:
            Refused: there is none left.
        """
        reads = self._counted(uid, milliseconds)
        if len(reads) >= READ_LIMIT.requests:
            raise too_many_reads()
        reads.append(milliseconds)

    def headers(self, uid: str, milliseconds: int) -> dict[str, str]:
        """What the user has left, in the older futures manual's headers."""
        reads = self._counted(uid, milliseconds)
        return {
            "ratelimit-limit": str(READ_LIMIT.requests),
            "ratelimit-interval": str(_WINDOW_MS),
            "ratelimit-remaining": str(READ_LIMIT.requests - len(reads)),
            "ratelimit-reset": str(reads[0] + _WINDOW_MS - milliseconds if reads else 0),
        }

    def _counted(self, uid: str, milliseconds: int) -> deque[int]:
        reads = self._reads[uid]
        while reads and milliseconds - reads[0] >= _WINDOW_MS:
            reads.popleft()
        return reads


def check_multi_assets(account: SandboxAccount, variant: PathVariantName) -> None:
    """SunX knows no other mode than multi-assets, so only v5 refuses.

    Raises:
        Refused: the account is in the old single-asset mode.
    """
    if variant == "v5" and account.asset_mode == SINGLE_ASSET_MODE:
        raise Refused(4002, "The account is not in the multi-assets collateral mode", "msg")


def _balance(account: SandboxAccount, variant: PathVariantName) -> object:
    check_multi_assets(account, variant)
    rows = account.balance.get("details")
    if (variant == "v5" and account.extra_row_fields) or not isinstance(rows, list):
        return account.balance
    # An account may be given a balance that no venue would send, to see what a client makes of it.
    documented = [_documented(row) if isinstance(row, Mapping) else row for row in rows]
    return {**account.balance, "details": documented}


def _documented(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in EXTRA_ROW_FIELDS}


_Data = Callable[[SandboxAccount, PathVariantName], object]
_SIGNED: Final[dict[str, tuple[PathVariantName, _Data]]] = {
    PATH_VARIANTS["sapi/v1"].balance: ("sapi/v1", _balance),
    PATH_VARIANTS["v5"].balance: ("v5", _balance),
    "/sapi/v1/public/multi_assets_margin": ("sapi/v1", lambda *_: {"multi_assets": MULTI_ASSETS}),
    "/v5/market/multi_assets_margin": ("v5", lambda *_: {"multi_assets": MULTI_ASSETS}),
    "/v5/account/asset_mode": ("v5", lambda account, _: {"asset_mode": account.asset_mode}),
}
_PUBLIC: Final[dict[str, dict[str, object]]] = {
    "/api/v1/timestamp": {},
    "/heartbeat/": {
        "data": {
            f"{part}{name}": value
            for part in ("", "swap_", "option_", "linear_swap_")
            for name, value in (("heartbeat", 1), ("estimated_recovery_time", None))
        }
    },
}


class Responder:
    """Answers requests. Its only state is who has read how often."""

    def __init__(self, accounts: AccountBook) -> None:
        self._accounts = accounts
        self._limiter = ReadLimiter()

    def answer(self, request: HttpRequest, milliseconds: int) -> HttpAnswer:
        """The answer to a request; the read limit goes by ``milliseconds``, which never jump."""
        if not (request.path.isascii() and request.query.isascii()):
            return page(HTTPStatus.BAD_REQUEST)
        if request.path not in _PUBLIC and request.path not in _SIGNED:
            return page(HTTPStatus.NOT_FOUND)
        if request.method != "GET":
            return page(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"})
        if request.path in _SIGNED:
            return self._signed(request, milliseconds)
        body = {"status": "ok", **_PUBLIC[request.path], "ts": request.milliseconds}
        return json_answer(body, SUCCESS_STATUS)

    def _signed(self, request: HttpRequest, milliseconds: int) -> HttpAnswer:
        variant, data_of = _SIGNED[request.path]
        try:
            account = authenticate(request, self._accounts.with_key, variant)
        except Refused as refusal:
            return refusal_answer(refusal, request)
        try:
            if account.refusal is not None:
                shape: RefusalShape = "msg" if variant == "v5" else "message"
                raise Refused(account.refusal.code, account.refusal.message, shape)
            data = data_of(self._accounts.looked_at(account.name), variant)
            self._limiter.take(account.uid, milliseconds)
            body = _success(variant, data, request.milliseconds)
            answer = json_answer(body, SUCCESS_CODE)
        except Refused as refusal:
            answer = refusal_answer(refusal, request)
        headers = {**answer.headers, **self._limiter.headers(account.uid, milliseconds)}
        return replace(answer, uid=account.uid, headers=headers)


def _success(variant: PathVariantName, data: object, milliseconds: int) -> dict[str, object]:
    """The envelope; the two pages print its keys in different order."""
    if variant == "v5":
        return {"code": SUCCESS_CODE, "data": data, "message": "Success", "ts": milliseconds}
    return {"code": SUCCESS_CODE, "message": "Success", "data": data, "ts": milliseconds}
