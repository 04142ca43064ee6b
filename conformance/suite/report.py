"""The report: Markdown tables of what held, for a README."""

from collections import Counter
from pathlib import Path
from typing import Final

HELD: Final = "passed"
FAILED: Final = "failed"

_MAX_LISTED: Final = 50

_Rows = dict[str, dict[str, Counter[str]]]


class Report:
    """What every test of a run gave.

    Args:
        heading: what was run.
    """

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._columns: dict[str, None] = {}
        self._vectors: _Rows = {}
        self._rules: _Rows = {}
        self._failures: dict[str, list[str]] = {}

    def add_vector(self, group: str, column: str, outcome: str) -> None:
        """Note whether a vector held.

        Args:
            group: what it is about.
            column: for whom: ``"sunx sync"``.
            outcome: pytest's: ``"passed"``, ``"failed"``, ``"skipped"``.
        """
        self._add(self._vectors, group, column, outcome)

    def add_rule(self, rule: str, column: str, outcome: str) -> None:
        """Note whether a rule held in one case; arguments as above."""
        self._add(self._rules, rule, column, outcome)

    def add_failure(self, rule: str, case: str | None, column: str | None) -> None:
        """Note what exactly did not hold."""
        text = rule if case is None else f"`{case}`: {rule}"
        self._failures.setdefault(text, []).extend([column] if column else [])

    def _add(self, rows: _Rows, row: str, column: str, outcome: str) -> None:
        self._columns[column] = None
        rows.setdefault(row, {}).setdefault(column, Counter())[outcome] += 1

    def markdown(self) -> str:
        """The whole report."""
        lines = [self._heading]
        lines += self._table("vectors about", dict(sorted(self._vectors.items())))
        lines += self._table("what must hold besides", self._rules)
        if self._failures:
            lines += ["", "What did not hold:", ""]
            for failure, columns in list(self._failures.items())[:_MAX_LISTED]:
                where = f" ({', '.join(dict.fromkeys(columns))})" if columns else ""
                lines.append(f"- {failure}{where}")
            if len(self._failures) > _MAX_LISTED:
                lines.append(f"- … and {len(self._failures) - _MAX_LISTED} more")
        return "\n".join([*lines, ""])

    def _table(self, title: str, rows: _Rows) -> list[str]:
        if not rows:
            return []
        lines = ["", f"| {title} | {' | '.join(self._columns)} |"]
        lines.append(f"|---|{'---|' * len(self._columns)}")
        for text, row in rows.items():
            cells = [_cell(row.get(column, Counter())) for column in self._columns]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        return lines

    def write(self, path: Path) -> None:
        """Write the report to a file."""
        path.write_text(self.markdown(), encoding="utf-8")


def _cell(results: Counter[str]) -> str:
    held, failed = results[HELD], results[FAILED]
    if failed:
        return f"✘ {failed} of {held + failed}"
    return f"✔ {held}" if held else "·"
