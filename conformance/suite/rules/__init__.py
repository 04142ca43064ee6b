"""What must hold for every vector: each rule is a function with its sentence as docstring."""

from suite.rules import calls, structure, vector
from suite.rules.rule import Result, Rule, results_of

RULES: tuple[Rule, ...] = (*vector.RULES, *structure.RULES, *calls.RULES)
"""All rules, in the order of the report; the first is what the vector itself says."""

__all__ = ["RULES", "Result", "Rule", "results_of"]
