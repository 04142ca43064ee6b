"""ccxt's balance structure, for every vector that gives a balance."""

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

from suite.exchanges import Bench
from suite.rules.rule import Rule, gives_balance, rule_for
from suite.structure import SUMMANDS, containers, for_ccxt, leaves
from suite.vectors import Case

RULES: Final[list[Rule]] = []

VIEWS = {*SUMMANDS, "debt"}
PLAIN_CCXT = ccxt.Exchange()
JSON_TYPES = {str, int, float, bool, type(None)}
PLAIN_DECIMAL = re.compile(r"(?!-0*\.?0*$)-?\d+(\.\d+)?")


@rule_for(RULES, gives_balance)
def ccxt_accepts_the_balance(bench: Bench, case: Case) -> None:
    """ccxt's own `test_balance` accepts the balance."""
    balance = bench.outcome(case, str).balance_or_raise()
    entry = for_ccxt(balance, case.vector.expect["balance"])
    ccxt_test_balance(PLAIN_CCXT, {}, "fetchBalance", entry)


@rule_for(RULES, gives_balance)
def free_and_used_make_the_total(bench: Bench, case: Case) -> None:
    """`free` and `used` add up to `total`, to the last digit."""
    for number in (str, Decimal):
        balance = bench.outcome(case, number).balance_or_raise()
        for code in balance["total"]:
            free, used, total = (Fraction(balance[code][name]) for name in SUMMANDS)
            assert free + used == total, code


@rule_for(RULES, gives_balance)
def no_foreign_key(bench: Bench, case: Case) -> None:
    """A balance has no other keys than ccxt's own and the currency codes."""
    balance = bench.outcome(case, None).balance_or_raise()
    codes = set(case.vector.expect["balance"])
    debts = {"debt"} if any("debt" in balance[code] for code in codes) else set()
    needed = codes | debts | {*SUMMANDS, "info"}
    assert needed <= set(balance) <= needed | {"timestamp", "datetime"}
    for code in codes:
        assert set(SUMMANDS) <= set(balance[code]) <= VIEWS


@rule_for(RULES, gives_balance)
def both_views_agree(bench: Bench, case: Case) -> None:
    """The figures by currency and the figures by kind are the same."""
    balance = bench.outcome(case, None).balance_or_raise()
    codes = case.vector.expect["balance"]
    for name in VIEWS:
        by_currency = {code: balance[code][name] for code in codes if name in balance[code]}
        assert balance.get(name, {}) == by_currency


@rule_for(RULES, gives_balance)
def info_is_untouched(bench: Bench, case: Case) -> None:
    """`info` is the answer as it came, in JSON's own types."""
    info = bench.outcome(case, Decimal).balance_or_raise()["info"]
    assert {type(container) for container in containers(info)} <= {dict, list}
    assert {type(leaf) for leaf in leaves(info)} <= JSON_TYPES
    # As text, so that 1, 1.0 and true are told from each other.
    assert json.dumps(info) == json.dumps(case.vector.json)


@rule_for(RULES, gives_balance)
def numbers_are_floats(bench: Bench, case: Case) -> None:
    """Figures are the nearest `float` unless `number` says otherwise, and zero has no sign."""
    balance = bench.outcome(case, None).balance_or_raise()
    for place, figure, text in _figures(balance, case):
        assert type(figure) is float, place
        assert figure == float(text), place
        assert figure or math.copysign(1, figure) > 0, place


@rule_for(RULES, gives_balance)
def numbers_are_exact(bench: Bench, case: Case) -> None:
    """Figures are exact where `number` is `str` (plain decimal text) or `Decimal`."""
    for number in (str, Decimal):
        balance = bench.outcome(case, number).balance_or_raise()
        for place, figure, text in _figures(balance, case):
            assert type(figure) is number, place
            assert Decimal(figure) == Decimal(text), place
            assert number is Decimal or PLAIN_DECIMAL.fullmatch(str(figure)), place


def _figures(balance: dict[str, Any], case: Case) -> Iterator[tuple[str, Any, str]]:
    """Every figure in the vector: its place, the actual and the expected value."""
    for code, figures in case.vector.expect["balance"].items():
        for name, text in figures.items():
            yield f"{code}.{name}", balance[code][name], text


@rule_for(RULES, gives_balance)
def a_balance_can_be_pickled_and_copied(bench: Bench, case: Case) -> None:
    """A balance is a plain dict that comes out the same from pickling and from deep-copying."""
    balance = bench.outcome(case, None).balance_or_raise()
    assert type(balance) is dict
    assert pickle.loads(pickle.dumps(balance)) == balance  # noqa: S301 - it was pickled here
    twin = copy.deepcopy(balance)
    assert twin == balance
    assert not set(map(id, containers(twin))) & set(map(id, containers(balance)))
