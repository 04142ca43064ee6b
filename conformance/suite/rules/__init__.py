"""The rules for all vectors. Each rule is a function whose docstring states it."""

from suite.rules import calls, structure, vector
from suite.rules.rule import Result, Rule, results_of

RULES: tuple[Rule, ...] = (*vector.RULES, *structure.RULES, *calls.RULES)
"""All rules, in the order of the report; the first one checks the vector's expectation."""

__all__ = ["RULES", "Result", "Rule", "results_of"]
