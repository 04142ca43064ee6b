"""Every vector over HTTP, checked by all rules of ``suite/rules`` that apply to it."""

import pytest

from suite.exchanges import ExchangeUnderTest
from suite.report import OUTCOMES
from suite.rules import RULES, results_of
from suite.vectors import Case


def test_vector(subject: ExchangeUnderTest, case: Case, request: pytest.FixtureRequest) -> None:
    """Every rule that applies to the vector holds; a failure lists all broken rules."""
    results = results_of(RULES, subject, case)
    request.node.stash[OUTCOMES] = [(result.rule.text, result.outcome) for result in results]
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        pytest.fail(
            f"{len(failed)} of {len(results)} rules do not hold:\n"
            + "".join(f"- {result.rule.text}\n" for result in failed)
            + "".join(f"\n# {result.rule.text}\n{result.details}\n" for result in failed),
            pytrace=False,
        )
    if all(result.outcome == "skipped" for result in results):
        pytest.skip("no rule can be checked with this exchange")
