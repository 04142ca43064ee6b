"""Rules about ccxt's balance structure, for every vector that expects a balance."""

import copy
import json
import math
import pickle
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import ccxt
from ccxt.test.exchange.base import test_balance as ccxt_test_balance

from suite.exchanges import ExchangeUnderTest
from suite.rules.rule import Rule, gives_balance, rule_for
from suite.structure import AMOUNTS, containers, for_ccxt_test, leaves
from suite.vectors import Case

RULES: Final[list[Rule]] = []

AMOUNTS_AND_DEBT = {*AMOUNTS, "debt"}
PLAIN_CCXT = ccxt.Exchange()
JSON_TYPES = {str, int, float, bool, type(None)}
PLAIN_DECIMAL = re.compile(r"(?!-0*\.?0*$)-?\d+(\.\d+)?")


@rule_for(RULES, gives_balance)
def ccxt_accepts_the_balance(subject: ExchangeUnderTest, case: Case) -> None:
    """ccxt's own `test_balance` accepts the balance."""
    balance = subject.outcome(case, str).balance_or_raise()
    entry = for_ccxt_test(balance, case.vector.expect["balance"])
    ccxt_test_balance(PLAIN_CCXT, {}, "fetchBalance", entry)


@rule_for(RULES, gives_balance)
def free_and_used_make_the_total(subject: ExchangeUnderTest, case: Case) -> None:
    """`free` and `used` add up to `total`, to the last digit."""
    for number in (str, Decimal):
        balance = subject.outcome(case, number).balance_or_raise()
        for code in balance["total"]:
            free, used, total = (Fraction(balance[code][name]) for name in AMOUNTS)
            assert free + used == total, code


@rule_for(RULES, gives_balance)
def no_foreign_key(subject: ExchangeUnderTest, case: Case) -> None:
    """A balance has no keys other than ccxt's own and the currency codes."""
    balance = subject.outcome(case, None).balance_or_raise()
    codes = set(case.vector.expect["balance"])
    debts = {"debt"} if any("debt" in balance[code] for code in codes) else set()
    needed = codes | debts | {*AMOUNTS, "info"}
    assert needed <= set(balance) <= needed | {"timestamp", "datetime"}
    for code in codes:
        assert set(AMOUNTS) <= set(balance[code]) <= AMOUNTS_AND_DEBT


@rule_for(RULES, gives_balance)
def both_views_agree(subject: ExchangeUnderTest, case: Case) -> None:
    """Both views, by currency and by `free`, `used`, `total` and `debt`, have the same amounts."""
    balance = subject.outcome(case, None).balance_or_raise()
    codes = case.vector.expect["balance"]
    for name in AMOUNTS_AND_DEBT:
        by_currency = {code: balance[code][name] for code in codes if name in balance[code]}
        assert balance.get(name, {}) == by_currency


@rule_for(RULES, gives_balance)
def info_is_untouched(subject: ExchangeUnderTest, case: Case) -> None:
    """`info` is the unchanged answer, in JSON's own types."""
    info = subject.outcome(case, Decimal).balance_or_raise()["info"]
    assert {type(container) for container in containers(info)} <= {dict, list}
    assert {type(leaf) for leaf in leaves(info)} <= JSON_TYPES
    # Compared as text, because 1 == 1.0 == True in Python.
    assert json.dumps(info) == json.dumps(case.vector.json)


@rule_for(RULES, gives_balance)
def numbers_are_floats(subject: ExchangeUnderTest, case: Case) -> None:
    """Amounts are the nearest `float` unless `number` is set, and zero has no sign."""
    balance = subject.outcome(case, None).balance_or_raise()
    for name, amount, text in _amounts(balance, case):
        assert type(amount) is float, name
        assert amount == float(text), name
        assert amount or math.copysign(1, amount) > 0, name


@rule_for(RULES, gives_balance)
def numbers_are_exact(subject: ExchangeUnderTest, case: Case) -> None:
    """Amounts are exact if `number` is `str` (plain decimal text) or `Decimal`."""
    for number in (str, Decimal):
        balance = subject.outcome(case, number).balance_or_raise()
        for name, amount, text in _amounts(balance, case):
            assert type(amount) is number, name
            assert Decimal(amount) == Decimal(text), name
            assert number is Decimal or PLAIN_DECIMAL.fullmatch(str(amount)), name


def _amounts(balance: dict[str, Any], case: Case) -> Iterator[tuple[str, Any, str]]:
    """Every amount in the vector: its name, the actual and the expected value."""
    for code, amounts in case.vector.expect["balance"].items():
        for name, text in amounts.items():
            yield f"{code}.{name}", balance[code][name], text


@rule_for(RULES, gives_balance)
def a_balance_can_be_pickled_and_copied(subject: ExchangeUnderTest, case: Case) -> None:
    """A balance is a plain dict; pickling and deep-copying give an equal one."""
    balance = subject.outcome(case, None).balance_or_raise()
    assert type(balance) is dict
    assert pickle.loads(pickle.dumps(balance)) == balance  # noqa: S301 - it was pickled here
    twin = copy.deepcopy(balance)
    assert twin == balance
    assert not set(map(id, containers(twin))) & set(map(id, containers(balance)))
