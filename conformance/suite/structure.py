"""Helpers to inspect a balance of any exchange."""

import copy
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

AMOUNTS: Final = ("free", "used", "total")


def containers(value: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """All dicts and lists in a value, itself included."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def leaves(value: Any) -> Iterator[Any]:
    """All keys and scalar values in a JSON value."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def for_ccxt_test(
    balance: Mapping[str, Any], expected: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The balance for ccxt's own ``test_balance``, without expected negative amounts.

    That test refuses all negative amounts, but an account with debts has some. In each currency
    where the *vector* has a negative amount, this adds one amount to ``free`` and ``used``, and
    twice that amount to ``total``. So a wrong sum stays wrong. Other currencies are unchanged: an
    unexpected negative amount is still refused.

    ``info`` is emptied: the test does not check it. But it encodes ``info`` for its messages, which
    fails for integers beyond 64 bits.

    Args:
        balance: a balance with amounts as text.
        expected: the vector's amounts by currency code.
    """
    raised = {**copy.deepcopy(dict(balance)), "info": {}}
    for code, amounts in expected.items():
        lowest = min(Fraction(amounts[name]) for name in AMOUNTS)
        if lowest < 0:
            by = math.ceil(-lowest)
            for name, times in zip(AMOUNTS, (1, 1, 2), strict=True):
                raised[name][code] = _plus(raised[name][code], by * times)
    return raised


def _plus(text: str, whole: int) -> str:
    """The sum as decimal text, exactly."""
    places = len(text.partition(".")[2])
    units = int(text.replace(".", "")) + whole * 10**places
    digits = str(abs(units)).rjust(places + 1, "0")
    sign = "-" if units < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"
