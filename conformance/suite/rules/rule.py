"""The type of a rule, and the function that checks all rules for one vector."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pytest

from suite.exchanges import ExchangeUnderTest
from suite.vectors import Case, Vector

Check = Callable[[ExchangeUnderTest, Case], None]
Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: the rule in one sentence, without the full stop.
        applies: whether it applies to a vector.
        check: raises if the rule does not hold; skips if it cannot be checked with the exchange.
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
    """Whether the vector expects a balance."""
    return vector.gives_balance


@dataclass(frozen=True, slots=True)
class Result:
    """The result of checking one rule.

    Attributes:
        rule: the rule.
        outcome: pytest's name of the outcome.
        details: the failed assertion with its traceback, in pytest's format; else empty.
    """

    rule: Rule
    outcome: Outcome
    details: str = ""


def results_of(rules: Iterable[Rule], subject: ExchangeUnderTest, case: Case) -> list[Result]:
    """Check all rules that apply, even after one has failed."""
    return [_result(rule, subject, case) for rule in rules if rule.applies(case.vector)]


def _result(rule: Rule, subject: ExchangeUnderTest, case: Case) -> Result:
    try:
        rule.check(subject, case)
    except pytest.skip.Exception:
        return Result(rule, "skipped")
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all are reported
        trace = pytest.ExceptionInfo.from_exception(error)
        trace.traceback = trace.traceback[1:]  # without this function
        return Result(rule, "failed", str(trace.getrepr(style="short")))
    return Result(rule, "passed")
