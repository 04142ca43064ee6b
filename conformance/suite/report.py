"""The report: the suite's results as Markdown tables."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

OUTCOMES: Final = pytest.StashKey[list[tuple[str, str]]]()
"""The rules that a test checked and the outcome of each; the first is the vector's own."""

_RECORD: Final = "conformance"
_MAX_FAILURES: Final = 50

_Rows = dict[str, dict[str, Counter[str]]]


def attach_record(item: pytest.Function, result: pytest.TestReport) -> None:
    """Attach the report's data to a result, so that pytest-xdist sends it between processes."""
    parameters: dict[str, Any] = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    text = (item.function.__doc__ or item.name).splitlines()[0].rstrip(".")
    case = parameters.get("case", parameters.get("vector"))
    record = {
        "column": " ".join(parameters["subject"]) if "subject" in parameters else None,
        "group": parameters["case"].vector.group if "case" in parameters else None,
        "case": None if case is None else str(case),
        "rules": item.stash.get(OUTCOMES, [(text, result.outcome)]),
    }
    result.user_properties.append((_RECORD, record))


class Report:
    """Collects the results of a run and writes them to a file. A pytest plugin.

    Args:
        path: the file to write.
        heading: what was run.
    """

    def __init__(self, path: Path, heading: str) -> None:
        self._path = path
        self._heading = heading
        self._columns: dict[str, None] = {}
        self._vectors: _Rows = {}
        self._rules: _Rows = {}
        self._failures: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one result."""
        for name, value in report.user_properties:
            if name == _RECORD:
                self._add_record(value)  # type: ignore[arg-type]

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._path.write_text(self.markdown(), encoding="utf-8")

    def _add_record(self, record: dict[str, Any]) -> None:
        column, group, case = record["column"], record["group"], record["case"]
        for number, (text, outcome) in enumerate(record["rules"]):
            if column is not None:
                rows, row = (self._vectors, group) if group and not number else (self._rules, text)
                self._columns[column] = None
                rows.setdefault(row, {}).setdefault(column, Counter())[outcome] += 1
            if outcome == "failed":
                failure = text if case is None else f"`{case}`: {text}"
                self._failures.setdefault(failure, []).extend([column] if column else [])

    def markdown(self) -> str:
        """The whole report."""
        lines = [self._heading]
        lines += self._table("vectors", dict(sorted(self._vectors.items())))
        lines += self._table("other rules", self._rules)
        if self._failures:
            lines += ["", "Failures:", ""]
            for failure, columns in list(self._failures.items())[:_MAX_FAILURES]:
                where = f" ({', '.join(dict.fromkeys(columns))})" if columns else ""
                lines.append(f"- {failure}{where}")
            if len(self._failures) > _MAX_FAILURES:
                lines.append(f"- … and {len(self._failures) - _MAX_FAILURES} more")
        return "\n".join([*lines, ""])

    def _table(self, title: str, rows: _Rows) -> list[str]:
        if not rows:
            return []
        columns = sorted(self._columns)
        lines = ["", f"| {title} | {' | '.join(columns)} |"]
        lines.append(f"|---|{'---|' * len(columns)}")
        for text, row in rows.items():
            cells = [_cell(row.get(column, Counter())) for column in columns]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        return lines


def _cell(results: Counter[str]) -> str:
    passed, failed = results["passed"], results["failed"]
    if failed:
        return f"✘ {failed} of {passed + failed}"
    return f"✔ {passed}" if passed else "·"
