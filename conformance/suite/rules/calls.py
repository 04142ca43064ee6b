"""Several calls of one exchange: ccxt's other methods, and calls that follow each other."""

import contextlib
import copy
from typing import Final

from suite.exchanges import Bench
from suite.rules.rule import Rule, gives_balance, rule_for
from suite.structure import containers
from suite.vectors import Case, Vector

RULES: Final[list[Rule]] = []

PARTS: Final = ("free", "used", "total")


@rule_for(RULES, gives_balance)
def derivative_methods(bench: Bench, case: Case) -> None:
    """ccxt's derivative methods give the parts of the same balance, under either kind of name."""
    arguments = case.vector.arguments()
    # This one without `number`, the parts with `number=float`: both must give the same.
    whole = bench.outcome(case, None).balance_or_raise()
    code = next(iter(case.vector.expect["balance"]), "total")
    with bench.opened(case, number=float) as opened:
        assert opened.call("fetchBalance", *arguments) == whole
        for part in PARTS:
            assert opened.call(f"fetch_{part}_balance", *arguments) == whole[part]
            assert opened.call(f"fetch{part.capitalize()}Balance", *arguments) == whole[part]
        assert opened.call("fetch_partial_balance", code, *arguments) == whole[code]
        assert opened.call("fetchPartialBalance", code, *arguments) == whole[code]


@rule_for(RULES, gives_balance)
def repeated_calls_share_nothing(bench: Bench, case: Case) -> None:
    """A change to one balance changes no other one, earlier or later."""
    arguments = case.vector.arguments()
    with bench.opened(case) as opened:
        first, second = (opened.call("fetch_balance", *arguments) for _ in range(2))
        untouched = copy.deepcopy(first)
        assert second == untouched
        for container in list(containers(first)):
            container.clear()
        assert second == untouched
        assert opened.call("fetch_balance", *arguments) == untouched


@rule_for(RULES, gives_balance)
def views_share_nothing(bench: Bench, case: Case) -> None:
    """No object occurs twice in a balance, so a change to one view changes no other."""
    ids = list(map(id, containers(bench.outcome(case, None).balance_or_raise())))
    assert len(ids) == len(set(ids))


def _has_params(vector: Vector) -> bool:
    return bool(vector.params)


@rule_for(RULES, _has_params)
def params_are_left_alone(bench: Bench, case: Case) -> None:
    """The caller's `params` are unchanged after a call, whatever its result."""
    (params,) = case.vector.arguments()
    # Whether the call may fail is for the vector's own rule.
    with contextlib.suppress(Exception), bench.opened(case) as opened:
        opened.call("fetch_balance", params)
    assert params == case.vector.params
