"""The account as the venues send it, typed, and its summary for users.

Sources: the field tables and examples of ``GET /sapi/v1/account/balance`` and
``GET /v5/account/balance``, and observed answers and push messages. The observed ones have fields
that the tables lack (``available_margin`` of a row), and other types (times as text).
"""

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final, TypedDict, TypeGuard, cast

import msgspec
from ccxt.base.errors import BadResponse

from sunx_adapter.protocol.document import Document, refuse_duplicate_keys, whole_number
from sunx_adapter.text import shortened

MAX_DIGITS: Final = 100
"""An amount with more digits before or after the point is refused."""

MAX_ROWS: Final = 2000
"""An account with more currencies is refused: mapping it would take longer than a call may."""

MAX_TIME: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""

_MAX_QUOTED: Final = 50
_OBJECTS: Final = frozenset((dict,))

UNSET: Any = msgspec.UNSET
"""Marks a field that the venue did not send."""


class AccountState(Enum):
    """The state of an account, and what it permits (from the table on both venues' pages)."""

    NORMAL = 1
    LIQUIDATING = 3
    ADL = 5
    OPEN_LIMIT = 6

    @property
    def permits_trading(self) -> bool:
        """Whether the user's orders are accepted; in ``OPEN_LIMIT`` only ADL orders are."""
        return self is AccountState.NORMAL

    @property
    def permits_transfers_in(self) -> bool:
        """Whether money can be moved into the account."""
        return self in (AccountState.NORMAL, AccountState.OPEN_LIMIT)

    @property
    def permits_transfers_out(self) -> bool:
        """Whether money can be moved out of the account."""
        return self is AccountState.NORMAL

    @property
    def forbids(self) -> list[str]:
        """What is not permitted: of ``"trading"``, ``"transfers in"``, ``"transfers out"``."""
        permits = {
            "trading": self.permits_trading,
            "transfers in": self.permits_transfers_in,
            "transfers out": self.permits_transfers_out,
        }
        return [what for what, permitted in permits.items() if not permitted]


_STATES: Final[dict[object, AccountState]] = {
    spelling: state
    for state in AccountState
    for spelling in (state.value, str(state.value), state.name.lower())
}


class Row(TypedDict, total=False):
    """One currency's row in ``details``. An amount is checked only where it is needed."""

    currency: object
    equity: object
    available: object
    withdraw_available: object
    initial_margin: object
    available_margin: object
    """Undocumented: HTX sends it over REST, but not over the push channel; SunX does not."""


class Account(TypedDict, total=False):
    """``data``, decoded."""

    details: object
    state: object
    equity: object
    initial_margin: object
    maintenance_margin: object
    maintenance_margin_rate: object
    profit_unreal: object
    available_margin: object
    voucher_value: object
    created_time: object
    updated_time: object


class AccountAnswer(msgspec.Struct, frozen=True, gc=False):
    """A successful answer with an account; the rows are not mapped yet.

    Attributes:
        data: ``data``, unchanged.
        rows: ``data.details``.
        timestamp: ``ts``, ms UTC; ``None`` if the answer has none.
        document: the decoded answer.
    """

    data: Account
    rows: list[Row]
    timestamp: int | None
    document: Document

    @property
    def info(self) -> Any:
        """The whole answer, unchanged."""
        return self.document.info


@dataclass(frozen=True, slots=True)
class AccountSummary:
    """The account as a whole.

    Amounts are exact, in the venue's valuation currency (USDT); times are ms UTC.

    Attributes:
        state: see :class:`AccountState`.
        equity: account equity.
        initial_margin: margin in use.
        maintenance_margin: margin below which the account is liquidated.
        maintenance_margin_rate: maintenance margin ratio.
        profit_unreal: unrealised profit and loss.
        available_margin: margin that can still be used.
        voucher_value: value of vouchers; ``None`` if the venue leaves it blank.
        created_time: when the account was created.
        updated_time: when it last changed.
        timestamp: the answer's time.
        info: the whole answer, unchanged.
    """

    state: AccountState
    equity: Decimal
    initial_margin: Decimal
    maintenance_margin: Decimal
    maintenance_margin_rate: Decimal
    profit_unreal: Decimal
    available_margin: Decimal
    voucher_value: Decimal | None
    created_time: int | None
    updated_time: int | None
    timestamp: int | None
    info: dict[str, Any] = field(repr=False)


def read_account(document: Document) -> AccountAnswer:
    """The account in a successful answer or in a push message; both have the same ``data``.

    Raises:
        BadResponse: ``data`` or ``details`` is missing, null or of the wrong type, a row is not
            an object, or a key is duplicate; the message names the JSON path.
    """
    content = document.exact
    data = content.get("data", UNSET)
    if not isinstance(data, dict):
        raise BadResponse(f"data {_described(data)}; an object was expected")
    details = data.get("details", UNSET)
    if details and isinstance(details, dict):
        # HTX's page prints the list as {"0": …, "1": …}. An empty object is not an empty list.
        keys = [str(index) for index in range(len(details))]
        details = [details[key] for key in keys] if details.keys() == set(keys) else details
    if not isinstance(details, list):
        raise BadResponse(f"data.details {_described(details)}; a list was expected")
    if len(details) > MAX_ROWS:
        raise BadResponse(f"data.details has {len(details)} rows; at most {MAX_ROWS} were expected")
    if not _OBJECTS.issuperset(map(type, details)):
        index, row = next((i, row) for i, row in enumerate(details) if not isinstance(row, dict))
        raise BadResponse(f"data.details[{index}] {_described(row)}; an object was expected")
    refuse_duplicate_keys(document, len(content) + len(data) + sum(map(len, details)))
    return AccountAnswer(
        data=cast("Account", data),
        rows=details,
        timestamp=_time(content.get("ts"), "ts"),
        document=document,
    )


def summarize(answer: AccountAnswer) -> AccountSummary:
    """The account's summary.

    Raises:
        BadResponse: a figure is missing or not a number, or the state is unknown.
    """
    account = answer.data
    sent = account.get("state", UNSET)
    try:
        state = _STATES[_state_spelling(sent)]
    except (KeyError, TypeError):
        known = ", ".join(f"{state.value} {state.name}" for state in AccountState)
        raise BadResponse(f"data.state {_described(sent)}; known states: {known}") from None
    blank_voucher = account.get("voucher_value") in ("", None)
    return AccountSummary(
        state=state,
        equity=amount(account, "equity"),
        initial_margin=amount(account, "initial_margin"),
        maintenance_margin=amount(account, "maintenance_margin"),
        maintenance_margin_rate=amount(account, "maintenance_margin_rate"),
        profit_unreal=amount(account, "profit_unreal"),
        available_margin=amount(account, "available_margin"),
        voucher_value=None if blank_voucher else amount(account, "voucher_value"),
        created_time=_time(account.get("created_time"), "data.created_time"),
        updated_time=_time(account.get("updated_time"), "data.updated_time"),
        timestamp=answer.timestamp,
        info=answer.info,
    )


def _state_spelling(state: object) -> object:
    # True == 1, but it is not a state.
    return state.lower() if isinstance(state, str) else None if state is True else state


def currency_id(row: Row, index: int) -> str:
    """The venue's id of a row's currency.

    Raises:
        BadResponse: it is missing, blank or not text.
    """
    value = row.get("currency", UNSET)
    if type(value) is str and value and not value.isspace():
        return value
    raise BadResponse(
        f"data.details[{index}].currency {_described(value)}; a currency was expected"
    )


def amount(holder: Row | Account, name: str, index: int | None = None) -> Decimal:
    """An amount, exactly as the venue sent it (decimal text or a JSON number).

    Args:
        holder: the row or the account.
        name: the field.
        index: the row's index in ``details``, for the message.

    Raises:
        BadResponse: it is missing, null, blank, too long, or not a finite decimal number.
    """
    value = holder.get(name, UNSET)
    exact = exact_number(value)
    if exact is None:
        row = "" if index is None else f".details[{index}]"
        raise BadResponse(f"data{row}.{name} {_described(value)}; a decimal number was expected")
    return exact


def exact_number(value: object) -> Decimal | None:
    """The number in a decoded value, or ``None`` if it is not a number of at most 100 digits."""
    if type(value) is str:
        # Decimal() alone also accepts other scripts' digits, "1_0", " 1", NaN and infinities.
        if len(value) > MAX_DIGITS or not value.isascii() or "_" in value or value.strip() != value:
            return None
        try:
            number = Decimal(value)
        except InvalidOperation:
            return None
        if not number.is_finite():
            return None
        # Only with an exponent can a number have more digits than its text has characters.
        return _bounded(number) if "e" in value or "E" in value else number
    if type(value) is int or type(value) is Decimal:
        return _bounded(Decimal(value))
    return None


def is_digits(value: object) -> TypeGuard[str]:
    """Whether the value is an amount in the usual form: digits as text, at most one point."""
    return (
        type(value) is str
        and len(value) <= MAX_DIGITS
        and value.isascii()
        and value.replace(".", "", 1).isdigit()
    )


def _bounded(number: Decimal) -> Decimal | None:
    if not number.is_finite() or abs(number.adjusted()) >= MAX_DIGITS:
        return None
    return number if len(number.as_tuple().digits) <= MAX_DIGITS else None


def _time(value: object, path: str) -> int | None:
    if value is None:
        return None
    number = value if type(value) is int else whole_number(value)
    if number is not None and 0 <= number <= MAX_TIME:
        return number
    raise BadResponse(f"{path} {_described(value)}; a time in ms was expected")


def _described(value: object) -> str:
    if value is UNSET:
        return "is missing"
    if value is None:
        return "is null"
    if value == "":
        return "is blank"
    if isinstance(value, dict | list):
        return f"is {'an object' if isinstance(value, dict) else 'a list'}"
    return f"is {shortened(repr(value), _MAX_QUOTED)}"
