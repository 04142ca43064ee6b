"""The policy: from a venue's account to ccxt's balance structure.

========== ==================================================================================
``total``  ``equity`` of the row
``free``   by policy: ``margin`` (default) ``available_margin`` of the row where the venue sends
           it, else ``equity`` − ``initial_margin``; ``available`` its ``available`` (the cash);
           ``withdrawable`` its ``withdraw_available``
``used``   ``total`` − ``free``, exactly
``debt``   −``available``, where that is below zero; else absent
========== ==================================================================================

Why ``margin``: in HTX's documented example the account's ``available_margin`` is its ``equity``
less its ``initial_margin``, while a row's ``available`` is its ``equity`` less its
``profit_unreal``: the cash, from which margin in use is not yet taken.
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
    amount,
    currency_id,
    exact_number,
)
from sunx_adapter.protocol.signing import utc_text
from sunx_adapter.venue import FreePolicy

View = Literal["free", "used", "total"]
Amounts = dict[str, float | str | Decimal]
"""Amounts by unified currency code, as ``exchange.number`` makes them."""

_FREE_FIELDS: Final[dict[FreePolicy, str]] = {
    "margin": "available_margin",
    "available": "available",
    "withdrawable": "withdraw_available",
}
FREE_POLICIES: Final[tuple[FreePolicy, ...]] = get_args(FreePolicy)

# Enough precision for any sum of amounts with MAX_DIGITS before and after the point. If it were
# ever too little, the traps would raise: no figure is silently rounded.
_EXACT = Context(
    prec=4 * MAX_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[InvalidOperation, Inexact]
)
_ZERO = Decimal(0)
_NO_TEXT: Final = object()
"""Equal to nothing else."""


def free_policy(value: object) -> FreePolicy:
    """The policy of that name.

    Raises:
        NotSupported: there is no such policy; the message lists the policies.
    """
    for policy in FREE_POLICIES:
        if value == policy:
            return policy
    raise NotSupported(f"free={value!r} is not supported; it can be {', '.join(FREE_POLICIES)}")


class CurrencyBalance(msgspec.Struct, gc=False):
    """One currency's exact figures, in that currency; ``used`` is ``total`` − ``free``."""

    total: Decimal
    free: Decimal
    debt: Decimal


def currency_balances(
    answer: AccountAnswer, policy: FreePolicy, code_of: Callable[[str], str]
) -> dict[str, CurrencyBalance]:
    """The exact figures by unified currency code; rows that come out as one code are added.

    Args:
        answer: the venue's answer.
        policy: what ``free`` means.
        code_of: ccxt's ``safe_currency_code``.

    Raises:
        BadResponse: a needed amount or a currency is missing or unreadable.
    """
    balances: dict[str, CurrencyBalance] = {}
    field = _FREE_FIELDS[policy]
    for index, row in enumerate(answer.rows):
        code = code_of(currency_id(row, index))
        equity = row.get("equity", UNSET)
        total = exact_number(equity)
        if total is None:
            total = amount(row, "equity", index)  # raises
        # In most rows no margin is in use, and the other amounts are the same text as the equity.
        text = equity if type(equity) is str else _NO_TEXT
        sent = row.get(field, UNSET)
        if sent == text:
            free = total
        elif sent is UNSET and policy == "margin":
            free = _EXACT.subtract(total, amount(row, "initial_margin", index))
        else:
            free = amount(row, field, index)
        cash = total if row.get("available", UNSET) == text else amount(row, "available", index)
        debt = cash.copy_negate() if cash < _ZERO else _ZERO
        same = balances.get(code)
        if same is None:
            balances[code] = CurrencyBalance(total, free, debt)
        else:
            same.total = _EXACT.add(same.total, total)
            same.free = _EXACT.add(same.free, free)
            same.debt = _EXACT.add(same.debt, debt)
    return balances


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
        number: ``exchange.number``, which converts exact text at the very end.
        code_of: ccxt's ``safe_currency_code``.

    Returns:
        Per currency code ``{"free", "used", "total"}`` (and ``"debt"``), the same figures under
        ``free``, ``used``, ``total`` (and ``debt``), and ``info``, ``timestamp`` (ms UTC),
        ``datetime``; no other key, because bots read every other key as a currency.

    Raises:
        BadResponse: a needed amount or a currency is missing or unreadable.
    """
    structure: dict[str, Any] = {}
    frees: dict[str, Any] = {}
    useds: dict[str, Any] = {}
    totals: dict[str, Any] = {}
    debts: dict[str, Any] = {}
    convert = _float if number is float else lambda exact: number(plain_text(exact))
    zero = 0.0 if number is float else number("0")
    for code, exact in currency_balances(answer, policy, code_of).items():
        totals[code] = total = convert(exact.total)
        if exact.free is exact.total or exact.free == exact.total:
            free, used = total, zero
        else:
            free, used = convert(exact.free), convert(_EXACT.subtract(exact.total, exact.free))
        frees[code], useds[code] = free, used
        structure[code] = entry = {"free": free, "used": used, "total": total}
        if exact.debt:
            entry["debt"] = debts[code] = convert(exact.debt)
    structure["free"] = frees
    structure["used"] = useds
    structure["total"] = totals
    if debts:
        structure["debt"] = debts
    structure["info"] = answer.info
    structure["timestamp"] = answer.timestamp
    structure["datetime"] = iso8601(answer.timestamp)
    return structure


def iso8601(timestamp: int | None) -> str | None:
    """ccxt's form of a time in ms UTC: ``"2025-09-28T06:51:04.737Z"``."""
    if timestamp is None:
        return None
    return f"{utc_text(timestamp // 1000)}.{timestamp % 1000:03d}Z"


def _float(exact: Decimal) -> float:
    # The same as float() of the text: both give the nearest float. Never -0.0.
    return float(exact) or 0.0


def plain_text(exact: Decimal) -> str:
    """Decimal text in the shortest plain form: ``"2.8999998"``, ``"-0.05"``, ``"0"``."""
    if not exact:
        return "0"
    text = f"{exact:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
