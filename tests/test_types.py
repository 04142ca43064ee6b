"""Type checkers on a user's own code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run_python

EXAMPLES = Path(__file__).parent / "examples"
CACHE = Path(__file__).parent.parent / ".mypy_cache" / "examples"

# ccxt has annotations but no py.typed marker; docs/types.md gives users these lines.
CONFIG = """\
[tool.mypy]
strict = true

[[tool.mypy.overrides]]
module = "ccxt.*"
follow_untyped_imports = true
"""


@pytest.mark.long("runs mypy and pyright on a user's code")
def test_mypy(tmp_path: Path) -> None:
    """mypy ``--strict`` accepts a bot and knows the type of every call."""
    config = tmp_path / "pyproject.toml"
    config.write_text(CONFIG)
    question = tmp_path / "question.py"
    question.write_text(
        "from sunx_adapter import Sunx\nwith Sunx() as exchange:\n"
        "    reveal_type(exchange.fetch_balance())\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(config), "--no-color-output"),
            *("--cache-dir", str(CACHE), str(question), *map(str, EXAMPLES.glob("*.py"))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    revealed, *rest = done.stdout.splitlines()
    assert 'Revealed type is "ccxt.base.types.Balances"' in revealed
    assert rest == [
        f"Success: no issues found in {len(list(EXAMPLES.glob('*.py'))) + 1} source files"
    ]


@pytest.mark.long("runs mypy and pyright on a user's code")
def test_pyright(tmp_path: Path) -> None:
    """Pyright accepts the bot too, and knows the type of every call."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable),
            str(EXAMPLES),
        ],
        cwd=tmp_path,  # without a configuration file
        # Otherwise pyright would look for a newer version online.
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert found["generalDiagnostics"] == []
    assert found["summary"]["filesAnalyzed"] == len(list(EXAMPLES.glob("*.py")))


def test_the_bot_runs() -> None:
    """The type-checked bot runs."""
    done = run_python("-W", "error", "-m", "tests.examples.bot", cwd=EXAMPLES.parent.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "liquidating sunx: 0 USDT to spend" in done.stdout
    assert done.stdout.endswith("0.4 in use\n")
