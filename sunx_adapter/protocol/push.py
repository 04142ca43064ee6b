"""The messages of the private push channel, as pure functions.

Sources: HTX's futures manual ("WebSocket Notification"; SunX has the same channel under another
path) and messages in open-source clients. A message is a JSON object with ``op``.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from ccxt.base.errors import (
    AccountNotEnabled,
    AuthenticationError,
    BadRequest,
    BadResponse,
    BaseError,
    ExchangeError,
    ExchangeNotAvailable,
    OnMaintenance,
    RateLimitExceeded,
)

from sunx_adapter.protocol.account import (
    AccountAnswer,
    amount,
    currency_id,
    read_account,
)
from sunx_adapter.protocol.document import LATEST_TIME, Document, clock, decode_json, whole_number
from sunx_adapter.protocol.errors import RULE_BY_CODE, ErrorRule, TransientError
from sunx_adapter.protocol.signing import (
    Credentials,
    authentication_parameters,
    encode_query,
    signature_text,
)
from sunx_adapter.text import shortened

TOPIC: Final = "account"
SUCCESS: Final = "0"

PUSH_ERROR_RULES: Final = (
    ErrorRule(
        ("2001", "2002", "2003"),
        "key or signature refused",
        AuthenticationError,
        "check that key and secret belong together, to this venue, and have not expired",
    ),
    ErrorRule(
        ("2004",),
        "too many visits",
        RateLimitExceeded,
        "connect less often",
        transient=True,
    ),
    ErrorRule(
        ("2030",),
        "too many connections of one user",
        RateLimitExceeded,
        "close other connections: all keys of a user share 30",
        transient=True,
    ),
    ErrorRule(
        ("2005", "2012", "2014"),
        "already authenticated, not subscribed, or subscribed twice",
        ExchangeNotAvailable,
        "the stream makes a new connection",
        transient=True,
    ),
    ErrorRule(
        ("2007",),
        "futures not opened",
        AccountNotEnabled,
        "open futures trading at the venue",
    ),
    ErrorRule(
        ("2010", "2040"),
        "no such topic, or a parameter is missing",
        BadRequest,
        "check options['pathVariant'] and urls",
    ),
    ErrorRule(
        ("1006",),
        "maintenance",
        OnMaintenance,
        "wait until the venue's maintenance is over",
        transient=True,
    ),
)
"""The push channel's own codes; 1006 means something else over REST. Any other code means the same
as over REST; a code unknown there too raises ``ExchangeError``."""

PUSH_RULE_BY_CODE: Final[dict[str, ErrorRule]] = {
    code: rule for rule in PUSH_ERROR_RULES for code in rule.codes
}

_MAX_MESSAGE: Final = 160
_MAX_QUOTED: Final = 40
_MAX_PING: Final = 64


@dataclass(frozen=True, slots=True)
class Ping:
    """The venue's heartbeat; the answer repeats its ``ts``."""

    ts: str | int | float | None


@dataclass(frozen=True, slots=True)
class Closing:
    """The venue is about to close the connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one of our messages, or an error without a message of ours.

    Attributes:
        op: ``"auth"``, ``"sub"``, ``"unsub"`` or ``"error"``.
        refusal: the exception for a code other than success, in a TransientError if the same
            message may succeed a moment later. An ``"error"`` always has a refusal.
        ts: the venue's time, ms UTC, if the message has one.
    """

    op: str
    refusal: BaseError | TransientError | None
    ts: int | None


@dataclass(frozen=True, slots=True)
class AccountUpdate:
    """A pushed account.

    Attributes:
        answer: the account, as over REST; ``info`` is the whole message.
        version: increases with each change; ``None`` if the message has none.
    """

    answer: AccountAnswer
    version: int | None


@dataclass(frozen=True, slots=True)
class OtherTopic:
    """A notification of another topic."""


Message = Ping | Closing | Reply | AccountUpdate | OtherTopic


def auth_message(
    credentials: Credentials, *, host: str, path: str, milliseconds: int
) -> tuple[str, str]:
    """The login message and its signature; unlike in a URL, it is not percent-encoded.

    Args:
        credentials: key and signer.
        host: the venue's host, as for REST.
        path: the path of the push channel, with its leading slash.
        milliseconds: the time to sign for, ms UTC.
    """
    parameters = authentication_parameters(credentials, milliseconds)
    text = signature_text("GET", host, path, encode_query(parameters))
    signature = credentials.signer.sign(text)
    message = {"op": "auth", "type": "api", **parameters, "Signature": signature}
    return _json(message), signature


def subscribe_message() -> str:
    """The message that subscribes to the account."""
    return _json({"op": "sub", "cid": "1", "topic": TOPIC})


def pong_message(ping: Ping) -> str:
    """The answer to a heartbeat. After five unanswered ones, the venue closes the connection."""
    return _json({"op": "pong", "ts": ping.ts})


def read_message(body: bytes) -> Message:
    """Parse a message.

    Args:
        body: JSON, decompressed.

    Raises:
        BadResponse: it is not a JSON object, its ``op`` is unknown, its account is invalid (see
            :func:`~sunx_adapter.protocol.account.read_account`), or a row lacks its currency,
            equity or cash.
    """
    try:
        return _message(decode_json(body))
    except RecursionError:
        raise BadResponse("the message is nested too deeply") from None


def _message(document: Document) -> Message:
    message = document.exact
    if not isinstance(message, dict):
        raise BadResponse(f"the message is not a JSON object but {type(message).__name__}")
    match message.get("op"):
        case "ping":
            return Ping(_repeatable(document.info.get("ts")))
        case "notify" if _topic(message) != TOPIC:
            return OtherTopic()
        case "notify":
            answer = read_account(document)
            _check_rows(answer)
            return AccountUpdate(answer, _version(message["data"].get("version")))
        case "auth" | "sub" | "unsub" | "error" as op:
            return Reply(op, _refusal(op, message), clock(message.get("ts")))
        case "close":
            return Closing()
        case op:
            raise BadResponse(f"the message has an unknown op: {shortened(str(op), _MAX_QUOTED)!r}")


def _repeatable(ts: object) -> str | int | float | None:
    """A heartbeat's ``ts`` if it is short text or a number of plausible size, else ``None``."""
    if isinstance(ts, str):
        return ts if len(ts) <= _MAX_PING else None
    return ts if isinstance(ts, int | float) and abs(ts) < LATEST_TIME else None


def _check_rows(answer: AccountAnswer) -> None:
    """Refuse rows that are unreadable with every policy for ``free``."""
    for index, row in enumerate(answer.rows):
        currency_id(row, index)
        amount(row, "equity", index)
        amount(row, "available", index)


def _topic(message: dict[str, Any]) -> str:
    # "account.*" is the same topic with a filter; "accounts.usdt" belongs to the older API.
    return str(message.get("topic")).partition(".")[0].lower()


def _refusal(op: str, message: dict[str, Any]) -> BaseError | TransientError | None:
    code = message.get("err-code", message.get("err_code"))
    if code is None and op != "error":
        raise BadResponse(f"the answer to {op} has no err-code")
    if str(code) == SUCCESS and op != "error":
        return None
    said = shortened(str(message.get("err-msg", message.get("err_msg", ""))), _MAX_MESSAGE)
    rule = PUSH_RULE_BY_CODE.get(str(code)) or RULE_BY_CODE.get(str(code))
    if rule is None:
        # The next connection may have no internal error; an unknown refusal is permanent.
        error: BaseError = ExchangeError(f"{op}: {code} {said}")
        transient = op == "error"
    else:
        error = rule.exception(f"{op}: {code} {said} ({rule.meaning}: {rule.advice})")
        transient = rule.transient
    return TransientError(error) if transient else error


def _version(value: object) -> int | None:
    if value is None:
        return None
    number = whole_number(value)
    if number is None:
        raise BadResponse(
            f"data.version is {shortened(str(value), _MAX_QUOTED)!r}; a whole number was expected"
        )
    return number


def _json(message: dict[str, object]) -> str:
    return json.dumps(message, separators=(",", ":"))
