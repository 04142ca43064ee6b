"""The conformance suite as its users run it: on its own, without pytest-xdist."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "conformance" / "vectors"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite from an empty directory, as against an installed package."""
    without = ("-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "-c", "pytest.ini")
    (directory / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *without, str(ROOT / "conformance"), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_misspelt_exchange_is_one_error(tmp_path: Path) -> None:
    """A misspelt ``--exchange`` ends the run before any test; one line suggests an id."""
    done = run(tmp_path, "--exchange", "sunxx")
    assert done.returncode == 4
    [line] = done.stderr.strip().splitlines()
    assert "'sunxx'" in line
    assert "did you mean" in line
    assert "sunx" in line.partition("did you mean")[2]


def test_a_failure_names_every_rule(tmp_path: Path) -> None:
    """A wrong vector fails as one test that lists every rule it breaks."""
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    shutil.copy(VECTORS / "config.toml", vectors)
    content = json.loads((VECTORS / "amount-of-18-places.json").read_text("utf-8"))
    content["expect"]["balance"]["USDT"] |= {"free": "1", "used": "0", "total": "1"}
    (vectors / "wrong.json").write_text(json.dumps(content), "utf-8")
    report = tmp_path / "report.md"
    done = run(
        *(tmp_path, "--vectors", str(vectors), "--report", str(report)),
        *("--exchange", "sunx", "-k", "sunx-sync-wrong"),
    )
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    for rule in (
        "The answer gives the expected balance or exception",
        "Amounts are the nearest `float`",
        "Amounts are exact",
    ):
        assert f"- {rule}" in done.stdout
        assert f"`wrong`: {rule}" in report.read_text("utf-8")
    assert "- `info` is the unchanged answer" not in done.stdout
