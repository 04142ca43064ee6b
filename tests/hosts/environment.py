"""A fresh virtual environment with packages installed as users install them."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

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
    """A virtual environment with only the packages that were installed into it.

    Attributes:
        root: its directory; commands run here, outside any source tree.
    """

    root: Path

    @classmethod
    def create(cls, root: Path, wheels: Sequence[Path]) -> "Environment":
        """Make an environment with these wheels and all that they require.

        The required packages are linked from the environment of the tests, so they are neither
        downloaded nor compiled again.

        Raises:
            AssertionError: a required package is missing or has an unsuitable version.
        """
        # Without pip: the tests' pip can install into it.
        venv.create(root, with_pip=False)
        pip("--python", str(root), "install", "--no-deps", "--no-index", *map(str, wheels))
        [packages] = root.glob("lib/*/site-packages")
        _link_requirements(packages)
        pip("--python", str(root), "check")
        return cls(root)

    def program(self, name: str = "python") -> str:
        """Return the path of one of its programs."""
        return str(self.root / ("Scripts" if os.name == "nt" else "bin") / name)

    def run(
        self, *command: str, extra_paths: Sequence[Path] = (), text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment; its status is not checked.

        Args:
            command: the program and its arguments.
            extra_paths: directories whose packages are found as if they were installed.
            text: the command's standard input.
        """
        return subprocess.run(
            command,
            cwd=self.root,
            env=self._variables(extra_paths),
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextmanager
    def sandbox(self, account: str) -> Iterator[dict[str, Any]]:
        """Run the installed sandbox in a separate process; yield its configurations by id."""
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

    def _variables(self, extra_paths: Sequence[Path] = ()) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = os.pathsep.join(map(str, extra_paths))
        return kept | {"PYTHONNOUSERSITE": "1"} | ({"PYTHONPATH": path} if path else {})


def build_wheels(sources: Sequence[Path], empty: Path) -> list[Path]:
    """Build a wheel of each source tree with its own build backend, in this order.

    Args:
        sources: directories with a ``pyproject.toml``.
        empty: an empty directory for the wheels.
    """
    projects = [tomllib.loads((source / "pyproject.toml").read_text()) for source in sources]
    # With the build backend of the tests; pip would install one for each.
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--check-build-dependencies")
    pip(*wheel, "--wheel-dir", str(empty), *map(str, sources))
    return [
        next(empty.glob(f"{project['project']['name'].replace('-', '_')}-*.whl"))
        for project in projects
    ]


def _link_requirements(packages: Path) -> None:
    """Link the requirements of a directory's packages from the environment of the tests."""
    waiting = list(metadata.distributions(path=[str(packages)]))
    linked = {each.name for each in waiting}
    while waiting:
        for text in waiting.pop().requires or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            distribution = metadata.distribution(requirement.name)
            if distribution.name not in linked:
                linked.add(distribution.name)
                waiting.append(distribution)
                _link(distribution, packages)


def _link(distribution: metadata.Distribution, packages: Path) -> None:
    # Files outside the directory, such as commands, start with "..".
    names = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    for name in names:
        (packages / name).symlink_to(str(distribution.locate_file(name)))


def pip(*arguments: str) -> None:
    """Run the tests' pip.

    Raises:
        AssertionError: pip failed; the message is its output.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
