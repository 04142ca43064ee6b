"""What can be said of a balance without knowing where it comes from."""

import copy
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

SUMMANDS: Final = ("free", "used", "total")


def containers(value: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """Everything in a balance that can be changed."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a JSON value that holds nothing else: keys, texts, numbers."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def for_ccxt(
    balance: Mapping[str, Any], expected: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The balance as ccxt's own check can take it: what is meant to be negative is raised.

    That check refuses every negative figure, which an account with debts has. In currencies where
    the *vector* tells of one, ``free`` and ``used`` are raised by one amount and ``total`` by twice
    that, so that their sum is as right, or as wrong, as it was. All else stays as it is: a figure
    that is negative where the vector does not say so is refused.

    ``info`` is emptied: the check does not look at it, but writes it into each of its messages
    with an encoder that knows no integers beyond 64 bits.

    Args:
        balance: its figures are text.
        expected: the figures by code that the vector tells of.
    """
    raised = {**copy.deepcopy(dict(balance)), "info": {}}
    for code, figures in expected.items():
        lowest = min(Fraction(figures[name]) for name in SUMMANDS)
        if lowest < 0:
            by = math.ceil(-lowest)
            for name, times in zip(SUMMANDS, (1, 1, 2), strict=True):
                raised[name][code] = _plus(raised[name][code], by * times)
    return raised


def _plus(text: str, whole: int) -> str:
    """The sum as decimal text, exactly."""
    places = len(text.partition(".")[2])
    units = int(text.replace(".", "")) + whole * 10**places
    digits = str(abs(units)).rjust(places + 1, "0")
    sign = "-" if units < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"
