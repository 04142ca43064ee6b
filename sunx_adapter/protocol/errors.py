"""The venues' error codes as one table of data.

Sources: the error lists of HTX's futures manual and of both balance pages, and answers in
open-source clients. To add a code, add it to :data:`ERROR_RULES` and to the page on errors.
"""

from dataclasses import dataclass
from typing import Final

from ccxt.base.errors import (
    AccountNotEnabled,
    AccountSuspended,
    AuthenticationError,
    BadRequest,
    BaseError,
    ExchangeNotAvailable,
    InvalidNonce,
    OnMaintenance,
    PermissionDenied,
    RateLimitExceeded,
    RequestTimeout,
    RestrictedLocation,
)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """What a family of error codes means.

    Attributes:
        codes: the codes as text; the venues send them as numbers or as text.
        meaning: a few words for the table in the documentation.
        exception: the ccxt exception that is raised.
        advice: what the user can do; part of the exception's text.
        transient: whether the same request may succeed a moment later.
    """

    codes: tuple[str, ...]
    meaning: str
    exception: type[BaseError]
    advice: str
    transient: bool = False


class TransientError(Exception):
    """A temporary failure: the next try may succeed. It never reaches the user.

    Attributes:
        error: the exception to raise if no try succeeds.
        retry_after: seconds to wait before the next try, if the answer says so; else ``None``.
        venue_time: the venue's time, ms UTC, if the venue refused the request's time.
    """

    def __init__(
        self,
        error: BaseError,
        retry_after: float | None = None,
        venue_time: int | None = None,
    ) -> None:
        super().__init__(error, retry_after, venue_time)
        self.error = error
        self.retry_after = retry_after
        self.venue_time = venue_time

    def __str__(self) -> str:
        return str(self.error)


ERROR_RULES: Final = (
    ErrorRule(
        (
            *("403", "1003", "1253", "12002", "12003", "12004", "12007", "12008"),
            *("api-signature-not-valid", "api-signature-check-failed"),
        ),
        "key or signature refused",
        AuthenticationError,
        "check that key and secret belong together, to this venue, and have not expired",
    ),
    ErrorRule(
        ("12001", "12006"),
        "the request's time is off",
        InvalidNonce,
        "set this machine's clock: it must be within 5 minutes of the venue's",
    ),
    ErrorRule(
        ("12005",),
        "IP address not allowed",
        PermissionDenied,
        "add this machine's IP address to the key's list at the venue",
    ),
    ErrorRule(
        ("12009",),
        "user locked",
        AccountSuspended,
        "ask the venue's support why the user is locked",
    ),
    ErrorRule(
        ("1010", "1011", "1012", "1018", "1220", "1228", "4002", "4007"),
        "no such account, futures not opened, or another collateral mode",
        AccountNotEnabled,
        "open futures trading and use the multi-assets collateral mode; an account in "
        "single-asset mode is served by HTX's older /linear-swap-api/ endpoints only",
    ),
    ErrorRule(
        ("1084",),
        "API disabled for a time",
        PermissionDenied,
        "wait until the time that the venue names",
    ),
    ErrorRule(
        ("1113", "1115", "1221", "1222", "1223", "1231"),
        "permission, VIP level or KYC missing",
        PermissionDenied,
        "give the key the permission to read, and complete what the venue asks for",
    ),
    ErrorRule(
        ("1224",),
        "not served in this country",
        RestrictedLocation,
        "the venue does not serve this country",
    ),
    ErrorRule(
        (
            *("1032", "1006", "510", "40403"),
            *("rate-too-many-requests", "base-request-exceed-frequency-limit"),
        ),
        "too many requests",
        RateLimitExceeded,
        "read less often: all keys of a user share 72 reads in 3 s",
        transient=True,
    ),
    ErrorRule(
        ("1000", "1001", "1002", "1004", "1046", "1108", "1252", "gateway-internal-error"),
        "system busy or failed",
        ExchangeNotAvailable,
        "try again",
        transient=True,
    ),
    ErrorRule(
        ("1077", "1078"),
        "settlement or delivery: assets cannot be read now",
        ExchangeNotAvailable,
        "try again when settlement is over",
    ),
    ErrorRule(
        ("1431", "maintain", "system-maintenance"),
        "maintenance",
        OnMaintenance,
        "wait until the venue's maintenance is over",
    ),
    ErrorRule(
        ("1030", "1066", "1067", "1347", "bad-request", "invalid-parameter"),
        "bad request",
        BadRequest,
        "check the parameters of the call",
    ),
    ErrorRule(
        ("timeout",),
        "timed out inside the venue",
        RequestTimeout,
        "try again",
        transient=True,
    ),
)
"""Any other code that is not success raises ``ExchangeError``."""

RULE_BY_CODE: Final[dict[str, ErrorRule]] = {
    code: rule for rule in ERROR_RULES for code in rule.codes
}
