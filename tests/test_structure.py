"""The package's structure, read from its source: imports, and names that stay private.

Run-time imports count, also those inside functions. Imports for type checkers
(``if TYPE_CHECKING:``) and names loaded by an import string do not count.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = "sunx_adapter"


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES: Final = {
    module_name(path): ast.parse(path.read_text("utf-8"), str(path))
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def nodes(tree: ast.AST, *, functions: bool = True) -> Iterator[ast.AST]:
    """Yield all nodes that run; optionally without those inside functions."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from nodes(child, functions=functions)


def imports(tree: ast.AST, *, functions: bool = True) -> Iterator[tuple[str, int]]:
    """Yield the dotted names of imported modules, or of names in them, with their lines."""
    for node in nodes(tree, functions=functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def attributes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield attributes of imported modules as dotted names (``time.monotonic``), with lines."""
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}", node.lineno


def within(name: str, *modules: str) -> bool:
    """Return whether a dotted name is one of these modules, or inside one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


NAMED_TUPLE_METHODS: Final = {"_asdict", "_fields", "_make", "_replace"}
"""Public, although they look private."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE_METHODS


def test_no_import_circle() -> None:
    """No two modules import each other, directly or through others."""
    graph = {
        module: {
            name if name in SOURCES else name.rpartition(".")[0]
            for name, _ in imports(tree)
            if within(name, PACKAGE)
        }
        for module, tree in SOURCES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " ← ".join(error.args[1]), pytrace=False)


def defined_names(tree: ast.AST) -> set[str]:
    """Return the names that a module defines: functions, classes, variables, attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in {"self", "cls"}
        ):
            names.add(node.attr)
    return names


def private_names_used(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield private names that are imported, or looked up on anything but ``self`` and ``cls``."""
    for name, line in imports(tree):
        if any(map(is_private, name.split("."))):
            yield name, line
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            value = node.value
            inherited = (isinstance(value, ast.Name) and value.id in {"self", "cls"}) or (
                isinstance(value, ast.Call) and ast.unparse(value.func) == "super"
            )
            if not inherited:
                yield node.attr, node.lineno


@pytest.mark.parametrize("folder", [PACKAGE, "conformance"])
def test_no_private_name_across_modules(folder: str) -> None:
    """A private name is used only in its own module, or by a subclass on ``self``."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"), str(path))
        own = defined_names(tree)
        found += [
            f"{path.relative_to(ROOT)}:{line}: {name}"
            for name, line in private_names_used(tree)
            if name not in own
        ]
    assert not found, "\n".join(found)


IO: Final = (
    *("aiohttp", "asyncio", "httpx", "os", "pathlib", "select", "socket", "ssl", "subprocess"),
    *("time.time", "time.monotonic", "time.sleep"),
)
"""Modules and functions for I/O, the clock and the environment."""

MUST_NOT_IMPORT: Final = {
    # Pure: no I/O, no clock, no environment.
    "protocol": (*IO, "sunx_adapter.exchange", "sunx_adapter.wire", "sunx_adapter.stream"),
    "balance": (*IO, "sunx_adapter.exchange", "sunx_adapter.wire", "sunx_adapter.stream"),
    "wire.answer": IO,
    "wire.route": IO,
    # Moves bytes: no balances, no keys, no ccxt classes.
    "wire": (
        *("ccxt", "sunx_adapter.balance", "sunx_adapter.exchange", "sunx_adapter.keys"),
        *("sunx_adapter.protocol", "sunx_adapter.stream", "sunx_adapter.venue"),
    ),
    # Parses no HTTP and no JSON.
    "exchange": ("httptools", "json", "sunx_adapter.host"),
    # Uses an exchange only through the stream's protocol class.
    "stream": tuple(
        f"sunx_adapter.exchange.{name}" for name in ("asynchronous", "base", "call", "sync")
    ),
    # Checks signatures with its own code.
    "sandbox": ("sunx_adapter.protocol.signing", "sunx_adapter.exchange", "sunx_adapter.wire"),
}
"""What each part of the package must not import, submodules included."""

IMPORTED_BY: Final = {
    "sandbox": {"sunx_adapter", "cli"},
    "fleet": {"cli"},
    "cli": {"__main__"},
}
"""Parts of the package that only these may import."""

HOST_MAY_IMPORT: Final = ("hookspecs", "ccxt_plugin", "frames")
"""All that the host may import from the package: it knows plugins, not SunX."""


@pytest.mark.parametrize("part", MUST_NOT_IMPORT)
def test_forbidden_imports(part: str) -> None:
    """No part of the package imports what it must not."""
    found = [
        f"{module}:{line}: {name}"
        for module, tree in SOURCES.items()
        if within(module, f"{PACKAGE}.{part}")
        for name, line in [*imports(tree), *attributes(tree)]
        if within(name, *MUST_NOT_IMPORT[part])
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("part", IMPORTED_BY)
def test_restricted_modules(part: str) -> None:
    """The sandbox, the fleet and the command line are imported only where allowed."""
    allowed = [f"{PACKAGE}.{name}" for name in (part, *IMPORTED_BY[part])]
    found = [
        f"{module}:{line}: {name}"
        for module, tree in SOURCES.items()
        if not within(module, *allowed)
        for name, line in imports(tree)
        if within(name, f"{PACKAGE}.{part}")
    ]
    assert not found, "\n".join(found)


def test_the_host_knows_no_venue() -> None:
    """The host imports nothing specific to SunX."""
    allowed = [f"{PACKAGE}.{name}" for name in HOST_MAY_IMPORT]
    imported = {name for name, _ in imports(SOURCES[f"{PACKAGE}.host"]) if within(name, PACKAGE)}
    modules = {name if name in SOURCES else name.rpartition(".")[0] for name in imported}
    assert modules <= {*allowed, PACKAGE}
    assert not {name for name in imported if name.rpartition(".")[0] == PACKAGE} - set(allowed)


LIGHT: Final = ("venue", "keys", "hookspecs", "plugin", "ccxt_plugin", "host")
HEAVY: Final = ("aiohttp", "ccxt", "httpx", "msgspec", "rich", "typer")


@pytest.mark.parametrize("part", ["", *LIGHT])
def test_early_imports_are_light(part: str) -> None:
    """Modules loaded before an exchange is made import nothing heavier than pluggy."""
    waiting, loaded = [f"{PACKAGE}.{part}".rstrip(".")], set[str]()
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        for name, line in imports(SOURCES[module], functions=False):
            assert not within(name, *HEAVY), f"{module}:{line}: {name}"
            owner = name if name in SOURCES else name.rpartition(".")[0]
            if owner in SOURCES and owner not in loaded:
                waiting.append(owner)
