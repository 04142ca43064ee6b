import re
import subprocess
import sys
from pathlib import Path

import pytest

from sunx_adapter.protocol.errors import ERROR_RULES

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(code: str) -> None:
    """Each Python example of the README runs as it is printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    # A retry is logged, as it is to be.
    errors = [line for line in done.stderr.splitlines() if "trying again" not in line]
    assert (done.returncode, errors) == (0, [])


def test_error_table() -> None:
    """The README's error table is the one that the code goes by."""
    rows = [
        f"| {', '.join(f'`{code}`' for code in rule.codes)} | {rule.meaning} "
        f"| `{rule.exception.__name__}` |"
        for rule in ERROR_RULES
    ]
    rows.append("| anything else that is not success | | `ExchangeError` |")
    table = "| code | meaning | exception |\n|---|---|---|\n" + "\n".join(rows)
    assert f"<!-- errors -->\n{table}\n<!-- /errors -->" in README


def test_commands() -> None:
    """The two commands stand in the README as CI and newcomers need them."""
    lines = [line.strip() for line in README.splitlines()]
    assert "pip install . && sunx-adapter balance --sandbox" in lines
    assert "pip install -e '.[test]' && pytest" in lines
