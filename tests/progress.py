"""A pytest plugin: starts long tests first and prints what they do.

A test is marked as long with ``@pytest.mark.long("installs …")``. pytest-xdist's workers cannot
write to the terminal, so they write to a file, whose lines the main process prints.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

_KEY: Final = "progress"
"""The key of the file's path in the input of pytest-xdist's workers."""


def register(config: pytest.Config) -> None:
    """Register the marker and the plugin."""
    config.addinivalue_line("markers", "long(what): starts first; the terminal says what it does")
    given: dict[str, Any] = getattr(config, "workerinput", {})
    in_worker = _KEY in given
    plugin = Worker(Path(given[_KEY]), given["workercount"]) if in_worker else Main(config)
    config.pluginmanager.register(plugin, "progress")


def _what(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("long")
    return None if marker is None else f"{item.location[0]} {marker.args[0]}"


class _LongFirst:
    def __init__(self, processes: int) -> None:
        self._processes = processes

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let each process start with its share of the long tests.

        pytest-xdist gives each process one stretch of the list; the long tests of a file, which may
        share an environment, stay in one.
        """
        ordered = sorted(items, key=lambda item: _what(item) is None)
        long = [item for item in ordered if _what(item) is not None]
        files = list(dict.fromkeys(item.path for item in long))
        short = ordered[len(long) :]
        items.clear()
        for number in range(self._processes):
            mine = files[number :: self._processes]
            items += (share := [item for item in long if item.path in mine])
            stretch = (len(ordered) - len(items) + len(share)) // (self._processes - number)
            rest = max(0, stretch - len(share))
            items += short[:rest]
            del short[:rest]


class Worker(_LongFirst):
    """In a worker of pytest-xdist: writes what each long test does to the file when it starts."""

    def __init__(self, file: Path, processes: int) -> None:
        super().__init__(processes)
        self._file = file

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Write what the test does before it is reported to start."""
        if (what := _what(item)) is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(what + "\n")
        return (yield)


class Main(_LongFirst):
    """In the main process: prints what each long test does when it starts."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(processes=1)
        self._config = config
        self._printed: set[str] = set()
        directory = tempfile.TemporaryDirectory(prefix="pytest-progress-")
        config.add_cleanup(directory.cleanup)
        self._path = Path(directory.name, "progress")
        self._path.touch()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Pass the file's path to a worker of pytest-xdist."""
        node.workerinput[_KEY] = str(self._path)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Print what the test does, if pytest-xdist is not used."""
        if (what := _what(item)) is not None:
            self._print(what)

    def pytest_runtest_logstart(self) -> None:
        """Print what the workers wrote."""
        for line in self._path.read_text("utf-8").splitlines():
            self._print(line)

    def _print(self, text: str) -> None:
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None and text not in self._printed:
            self._printed.add(text)
            terminal.ensure_newline()
            terminal.write_line(f"… {text}")
