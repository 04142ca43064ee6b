"""A fresh virtual environment, with packages installed into it as a user installs them."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SERVE = """
import json, sys
from sunx_adapter import Sandbox, plugin
with Sandbox() as venue:
    ids = [offer.id for offer in plugin.OFFERS]
    print(json.dumps({id: venue.config(id, sys.argv[1]) for id in ids}), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that sees nothing of the one the tests run in.

    Attributes:
        root: where it is; commands run here, far from any source tree.
    """

    root: Path

    @classmethod
    def create(cls, root: Path, requirements: Sequence[str | Path]) -> "Environment":
        """Make one, and install into it wheels or whatever else pip understands."""
        # Without a pip of its own: that of the caller can install into it, and is there already.
        venv.create(root, with_pip=False)
        _pip("--python", str(root), "install", *map(str, requirements))
        return cls(root)

    def program(self, name: str = "python") -> str:
        """The path of one of its programs."""
        return str(self.root / ("Scripts" if os.name == "nt" else "bin") / name)

    def run(
        self, *command: str, beside: Sequence[Path] = (), text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, however that ends.

        Args:
            command: the program and its arguments.
            beside: directories whose packages are to be found as if they were installed too.
            text: what the command reads.
        """
        return subprocess.run(
            command,
            cwd=self.root,
            env=self._variables(beside),
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextmanager
    def sandbox(self, account: str) -> Iterator[dict[str, Any]]:
        """The installed sandbox in a process of its own; the account's configuration by id."""
        with subprocess.Popen(
            [self.program(), "-c", _SERVE, account],
            cwd=self.root,
            env=self._variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())
            finally:
                process.stdin.close()

    def _variables(self, beside: Sequence[Path] = ()) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = os.pathsep.join(map(str, beside))
        return kept | {"PYTHONNOUSERSITE": "1"} | ({"PYTHONPATH": path} if path else {})


def build_wheel(source: Path, empty: Path) -> Path:
    """Build a wheel of a source tree with its own build backend, into an empty directory."""
    _pip("wheel", "--no-deps", "--wheel-dir", str(empty), str(source))
    [wheel] = empty.glob("*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
