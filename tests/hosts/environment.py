"""A fresh virtual environment, with packages installed into it as a user installs them."""

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
    """A virtual environment without any packages but those that were installed into it.

    Attributes:
        root: where it is; commands run here, far from any source tree.
    """

    root: Path

    @classmethod
    def create(cls, root: Path, wheels: Sequence[Path]) -> "Environment":
        """Make one with these wheels and what they require, directly or indirectly, installed.

        The required packages are linked from the environment that the tests run in, so they are
        neither downloaded nor compiled again.

        Raises:
            AssertionError: a required package is missing or has an unsuitable version.
        """
        # Without a pip of its own: the tests' pip can install into it.
        venv.create(root, with_pip=False)
        pip("--python", str(root), "install", "--no-deps", "--no-index", *map(str, wheels))
        [packages] = root.glob("lib/*/site-packages")
        _link_requirements(packages)
        pip("--python", str(root), "check")
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


def build_wheels(sources: Sequence[Path], empty: Path) -> list[Path]:
    """Build a wheel of each source tree with its own build backend; in the order of the sources.

    Args:
        sources: directories with a ``pyproject.toml``.
        empty: where the wheels are written, and an environment with the build backends.
    """
    projects = [tomllib.loads((source / "pyproject.toml").read_text()) for source in sources]
    builder = empty / "builder"
    venv.create(builder, with_pip=False)
    backends = {text for project in projects for text in project["build-system"]["requires"]}
    pip("--python", str(builder), "install", *sorted(backends))
    # One environment for all of them; pip would make one for each.
    wheel = ("--python", str(builder), "wheel", "--no-deps", "--no-build-isolation")
    pip(*wheel, "--wheel-dir", str(empty), *map(str, sources))
    return [
        next(empty.glob(f"{project['project']['name'].replace('-', '_')}-*.whl"))
        for project in projects
    ]


def _link_requirements(packages: Path) -> None:
    """Link what the packages in a directory require, from the environment of the tests."""
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
    # Files outside, such as commands, start with "..".
    names = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    for name in names:
        (packages / name).symlink_to(str(distribution.locate_file(name)))


def pip(*arguments: str) -> None:
    """Run the tests' pip.

    Raises:
        AssertionError: it failed; the message is its output.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
