"""From a venue's account to ccxt's balance structure.

========== ==================================================================================
``total``  ``equity`` of the row
``free``   by policy: ``margin`` (default) ``available_margin`` of the row where the venue sends
           it, else ``equity`` − ``initial_margin``; ``available`` its ``available`` (the cash);
           ``withdrawable`` its ``withdraw_available``
``used``   ``total`` − ``free``, exactly
``debt``   −``available`` if ``available`` is negative; else absent
========== ==================================================================================

Why ``margin``: in HTX's documented example the account's ``available_margin`` is its ``equity``
less its ``initial_margin``, while a row's ``available`` is its ``equity`` less its
``profit_unreal``: the cash, from which margin in use is not subtracted.
"""

from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final, Literal, get_args

import msgspec
from ccxt.base.errors import NotSupported

from sunx_adapter.protocol.account import (
    MAX_DIGITS,
    UNSET,
    AccountAnswer,
    Row,
    amount,
    currency_id,
    is_digits,
)
from sunx_adapter.protocol.signing import utc_text
from sunx_adapter.venue import FreePolicy

View = Literal["free", "used", "total"]
Amounts = dict[str, float | str | Decimal]
"""Amounts by unified currency code, in the type that the setting ``number`` chooses."""

_FREE_FIELDS: Final[dict[FreePolicy, str]] = {
    "margin": "available_margin",
    "available": "available",
    "withdrawable": "withdraw_available",
}
FREE_POLICIES: Final[tuple[FreePolicy, ...]] = get_args(FreePolicy)

# The precision is enough for any sum of amounts with MAX_DIGITS before and after the point. If it
# were not, the traps would raise: no figure is silently rounded.
_EXACT = Context(
    prec=4 * MAX_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[InvalidOperation, Inexact]
)
_ZERO = Decimal(0)


def free_policy(value: object) -> FreePolicy:
    """The policy with this name.

    Raises:
        NotSupported: there is no such policy; the message lists the policies.
    """
    for policy in FREE_POLICIES:
        if value == policy:
            return policy
    raise NotSupported(f"free={value!r} is not supported; it can be {', '.join(FREE_POLICIES)}")


class CurrencyBalance(msgspec.Struct, gc=False):
    """The exact figures of one currency; ``used`` is ``total`` − ``free``."""

    total: Decimal
    free: Decimal
    debt: Decimal


def currency_balances(
    answer: AccountAnswer, policy: FreePolicy, code_of: Callable[[str], str]
) -> dict[str, CurrencyBalance | str]:
    """The exact figures by unified currency code; rows with the same code are added.

    Args:
        answer: the venue's answer.
        policy: what ``free`` means.
        code_of: ccxt's ``safe_currency_code``.

    Returns:
        The figures of each currency. In the usual case all of a currency is free; then its only
        figure is the venue's text for the amount.

    Raises:
        BadResponse: a needed amount or a currency is missing or unreadable.
    """
    balances: dict[str, CurrencyBalance | str] = {}
    field = _FREE_FIELDS[policy]
    for index, row in enumerate(answer.rows):
        code = code_of(currency_id(row, index))
        equity, free = row.get("equity"), row.get(field, UNSET)
        if free is UNSET and policy == "margin" and row.get("initial_margin") == "0":
            free = equity
        if equity == free == row.get("available") and is_digits(equity):
            figures: CurrencyBalance | str = equity
        else:
            figures = _figures(row, index, field)
        same = balances.get(code)
        balances[code] = figures if same is None else _sum(_exact(same), _exact(figures))
    return balances


def _figures(row: Row, index: int, field: str) -> CurrencyBalance:
    total = amount(row, "equity", index)
    if field == _FREE_FIELDS["margin"] and field not in row:
        free = _EXACT.subtract(total, amount(row, "initial_margin", index))
    else:
        free = amount(row, field, index)
    if is_digits(row.get("available")):
        return CurrencyBalance(total, free, _ZERO)  # no sign, no debt
    cash = amount(row, "available", index)
    return CurrencyBalance(total, free, cash.copy_negate() if cash < _ZERO else _ZERO)


def _exact(figures: CurrencyBalance | str) -> CurrencyBalance:
    if isinstance(figures, str):
        return CurrencyBalance(Decimal(figures), Decimal(figures), _ZERO)
    return figures


def _sum(one: CurrencyBalance, other: CurrencyBalance) -> CurrencyBalance:
    return CurrencyBalance(
        _EXACT.add(one.total, other.total),
        _EXACT.add(one.free, other.free),
        _EXACT.add(one.debt, other.debt),
    )


def balance_structure(
    answer: AccountAnswer,
    *,
    policy: FreePolicy,
    number: Callable[[str], Any],
    code_of: Callable[[str], str],
) -> dict[str, Any]:
    """ccxt's balance structure.

    Args:
        answer: the venue's answer.
        policy: what ``free`` means.
        number: ``exchange.number``, which converts exact text to the type of the figures.
        code_of: ccxt's ``safe_currency_code``.

    Returns:
        Per currency code ``{"free", "used", "total"}`` (and ``"debt"``), the same figures under
        ``free``, ``used``, ``total`` (and ``debt``), and ``info``, ``timestamp`` (ms UTC),
        ``datetime``. There is no other key: bots would read it as a currency.

    Raises:
        BadResponse: a needed amount or a currency is missing or unreadable.
    """
    structure: dict[str, Any] = {}
    frees: dict[str, Any] = {}
    useds: dict[str, Any] = {}
    totals: dict[str, Any] = {}
    debts: dict[str, Any] = {}
    convert = _float if number is float else lambda exact: number(plain_text(Decimal(exact)))
    zero = 0.0 if number is float else number("0")
    for code, figures in currency_balances(answer, policy, code_of).items():
        if isinstance(figures, str):
            total = free = convert(figures)
            used = zero
        else:
            total, free = convert(figures.total), convert(figures.free)
            used = convert(_EXACT.subtract(figures.total, figures.free))
            if figures.debt:
                debts[code] = convert(figures.debt)
        frees[code], useds[code], totals[code] = free, used, total
        structure[code] = {"free": free, "used": used, "total": total}
    structure["free"] = frees
    structure["used"] = useds
    structure["total"] = totals
    if debts:
        for code, debt in debts.items():
            structure[code]["debt"] = debt
        structure["debt"] = debts
    structure["info"] = answer.document.info
    structure["timestamp"] = answer.timestamp
    structure["datetime"] = iso8601(answer.timestamp)
    return structure


def iso8601(timestamp: int | None) -> str | None:
    """ccxt's form of a time in ms UTC: ``"2025-09-28T06:51:04.737Z"``."""
    if timestamp is None:
        return None
    return f"{utc_text(timestamp // 1000)}.{str(timestamp % 1000).zfill(3)}Z"


def _float(exact: Decimal | str) -> float:
    # float() of a Decimal and of its text is the same, the nearest float. Zero is never -0.0.
    return float(exact) or 0.0


def plain_text(exact: Decimal) -> str:
    """Decimal text in the shortest plain form: ``"2.8999998"``, ``"-0.05"``, ``"0"``."""
    if not exact:
        return "0"
    text = f"{exact:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
