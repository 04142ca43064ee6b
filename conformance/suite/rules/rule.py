"""A rule, and how the rules of one vector are checked together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pytest

from suite.exchanges import Bench
from suite.vectors import Case, Vector

Check = Callable[[Bench, Case], None]
Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold.

    Attributes:
        text: the rule in one sentence, without the full stop.
        applies: for which vectors it must hold.
        check: raises if it does not hold; skips if the exchange cannot be asked.
    """

    text: str
    applies: Callable[[Vector], bool]
    check: Check


def rule_for(
    rules: list[Rule], applies: Callable[[Vector], bool] = lambda _: True
) -> Callable[[Check], Check]:
    """Add the decorated function to the rules, with the first line of its docstring as text."""

    def add(check: Check) -> Check:
        text = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        rules.append(Rule(text, applies, check))
        return check

    return add


def gives_balance(vector: Vector) -> bool:
    """Whether a balance must come out of the vector."""
    return vector.gives_balance


@dataclass(frozen=True, slots=True)
class Result:
    """What the check of one rule gave.

    Attributes:
        rule: the rule.
        outcome: as pytest names it.
        details: the failed assertion with its traceback, as pytest prints it; else empty.
    """

    rule: Rule
    outcome: Outcome
    details: str = ""


def results_of(rules: Iterable[Rule], bench: Bench, case: Case) -> list[Result]:
    """Check each rule that applies; one that fails does not stop the others."""
    return [_result(rule, bench, case) for rule in rules if rule.applies(case.vector)]


def _result(rule: Rule, bench: Bench, case: Case) -> Result:
    try:
        rule.check(bench, case)
    except pytest.skip.Exception:
        return Result(rule, "skipped")
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all are reported
        trace = pytest.ExceptionInfo.from_exception(error)
        trace.traceback = trace.traceback[1:]  # without this function
        return Result(rule, "failed", str(trace.getrepr(style="short")))
    return Result(rule, "passed")
