"""Rules about several calls of one exchange: ccxt's derived methods, and repeated calls."""

import contextlib
import copy
from typing import Final

from suite.exchanges import ExchangeUnderTest
from suite.rules.rule import Rule, gives_balance, rule_for
from suite.structure import AMOUNTS, containers
from suite.vectors import Case, Vector

RULES: Final[list[Rule]] = []


@rule_for(RULES, gives_balance)
def derived_methods(subject: ExchangeUnderTest, case: Case) -> None:
    """ccxt's derived methods, in snake case and camel case, return parts of the same balance."""
    arguments = case.vector.arguments()
    # The whole balance without `number`, the parts with `number=float`: they must be equal.
    whole = subject.outcome(case, None).balance_or_raise()
    code = next(iter(case.vector.expect["balance"]), "total")
    with subject.opened(case, number=float) as opened:
        assert opened.call("fetchBalance", *arguments) == whole
        for part in AMOUNTS:
            assert opened.call(f"fetch_{part}_balance", *arguments) == whole[part]
            assert opened.call(f"fetch{part.capitalize()}Balance", *arguments) == whole[part]
        assert opened.call("fetch_partial_balance", code, *arguments) == whole[code]
        assert opened.call("fetchPartialBalance", code, *arguments) == whole[code]


@rule_for(RULES, gives_balance)
def repeated_calls_share_nothing(subject: ExchangeUnderTest, case: Case) -> None:
    """Changing one balance does not change an earlier or later one."""
    arguments = case.vector.arguments()
    with subject.opened(case) as opened:
        first, second = (opened.call("fetch_balance", *arguments) for _ in range(2))
        untouched = copy.deepcopy(first)
        assert second == untouched
        for container in list(containers(first)):
            container.clear()
        assert second == untouched
        assert opened.call("fetch_balance", *arguments) == untouched


@rule_for(RULES, gives_balance)
def views_share_nothing(subject: ExchangeUnderTest, case: Case) -> None:
    """No object occurs twice in a balance, so changing one view does not change the other."""
    ids = list(map(id, containers(subject.outcome(case, None).balance_or_raise())))
    assert len(ids) == len(set(ids))


def _has_params(vector: Vector) -> bool:
    return bool(vector.params)


@rule_for(RULES, _has_params)
def params_are_left_alone(subject: ExchangeUnderTest, case: Case) -> None:
    """A call does not modify the caller's `params`."""
    (params,) = case.vector.arguments()
    # Whether the call may fail is checked by the vector's own rule.
    with contextlib.suppress(Exception), subject.opened(case) as opened:
        opened.call("fetch_balance", params)
    assert params == case.vector.params
