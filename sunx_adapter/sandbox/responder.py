"""Answers requests as the venues do, without faults. No I/O."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from sunx_adapter.sandbox.accounts import SINGLE_ASSET_MODE, AccountBook, SandboxAccount
from sunx_adapter.sandbox.answers import HttpRequest, Refused, SandboxAnswer, json_answer, page
from sunx_adapter.sandbox.balances import EXTRA_ROW_FIELDS, with_rows
from sunx_adapter.sandbox.signatures import authenticate
from sunx_adapter.venue import PATH_VARIANTS, READ_LIMIT, PathVariantName

MULTI_ASSETS: Final = ("BTC", "USDT", "ETH")
"""Assets usable as collateral, the same in both variants."""

_WINDOW_MS: Final = READ_LIMIT.seconds * 1000


def check_multi_assets(account: SandboxAccount, variant: PathVariantName) -> None:
    """Raise the refusal of v5 for accounts in the old single-asset mode; SunX has no such mode."""
    if variant == "v5" and account.asset_mode == SINGLE_ASSET_MODE:
        raise Refused(4002, "The account is not in the multi-assets collateral mode")


def _balance(account: SandboxAccount, variant: PathVariantName) -> object:
    check_multi_assets(account, variant)
    left_out = () if variant == "v5" and account.extra_row_fields else EXTRA_ROW_FIELDS
    return with_rows(account.balance, lambda row: {n: row[n] for n in row if n not in left_out})


_Data = Callable[[SandboxAccount, PathVariantName], object]
_SIGNED: Final[dict[str, tuple[PathVariantName, _Data]]] = {
    PATH_VARIANTS["sapi/v1"].balance: ("sapi/v1", _balance),
    PATH_VARIANTS["v5"].balance: ("v5", _balance),
    "/sapi/v1/public/multi_assets_margin": ("sapi/v1", lambda *_: {"multi_assets": MULTI_ASSETS}),
    "/v5/market/multi_assets_margin": ("v5", lambda *_: {"multi_assets": MULTI_ASSETS}),
    "/v5/account/asset_mode": ("v5", lambda account, _: {"asset_mode": account.asset_mode}),
}
_HEARTBEAT: Final = {
    f"{part}{name}": value
    for part in ("", "swap_", "option_", "linear_swap_")
    for name, value in (("heartbeat", 1), ("estimated_recovery_time", None))
}
_PUBLIC: Final[dict[str, dict[str, object]]] = {
    "/api/v1/timestamp": {},
    "/heartbeat/": {"data": _HEARTBEAT},
}


class Responder:
    """Answers requests. Its only state is each user's reads of the last seconds."""

    def __init__(self, accounts: AccountBook) -> None:
        self._accounts = accounts
        self._reads: defaultdict[str, deque[int]] = defaultdict(deque)

    def answer(self, request: HttpRequest, now_ms: int) -> SandboxAnswer:
        """The answer to a request; ``now_ms``, without ``clock`` faults, is for the read limit."""
        if not (request.path.isascii() and request.query.isascii()):
            return page(HTTPStatus.BAD_REQUEST)
        if request.path not in _PUBLIC and request.path not in _SIGNED:
            return page(HTTPStatus.NOT_FOUND)
        if request.method != "GET":
            return page(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"})
        if request.path in _PUBLIC:
            body = {"status": "ok", **_PUBLIC[request.path], "ts": request.time_ms}
            return json_answer(body, "ok")
        try:
            return self._signed(request, now_ms)
        except Refused as refusal:
            return refusal.answer(request)

    def _signed(self, request: HttpRequest, now_ms: int) -> SandboxAnswer:
        variant, data_of = _SIGNED[request.path]
        account = authenticate(request, self._accounts, variant)
        reads = self._reads[account.uid]
        while reads and now_ms - reads[0] >= _WINDOW_MS:
            reads.popleft()
        try:
            if (refused := account.refusal) is not None:
                raise Refused(refused.code, refused.message)
            content = {"data": data_of(self._accounts.update(account.name), variant)}
            if len(reads) == READ_LIMIT.requests:
                raise Refused.too_many_reads()
            reads.append(now_ms)  # refused reads do not count
            # The order of keys differs between the venues' pages.
            success = {"message": "Success"}
            content = content | success if variant == "v5" else success | content
            answer = json_answer({"code": 200, **content, "ts": request.time_ms}, 200)
        except Refused as refusal:
            answer = refusal.answer(request)
        # As in the older futures manual.
        limit = {
            "ratelimit-limit": str(READ_LIMIT.requests),
            "ratelimit-interval": str(_WINDOW_MS),
            "ratelimit-remaining": str(READ_LIMIT.requests - len(reads)),
            "ratelimit-reset": str(reads[0] + _WINDOW_MS - now_ms if reads else 0),
        }
        return replace(answer, uid=account.uid, headers={**answer.headers, **limit})
