"""Exceptions can be pickled."""

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ccxt.base.errors import NetworkError

import sunx_adapter

ROOT = Path(sunx_adapter.__file__).parent
NAMES = [
    ".".join(("sunx_adapter", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if path.stem not in ("__init__", "__main__") and path.parent.name != "sandbox"
]
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "TransientError": (NetworkError("no"), 1.5, 1_758_006_975_000),
    "DeclinedError": ("no", 302, "https://example.invalid/"),
}


def exception_classes() -> list[type[Exception]]:
    """Return all exception classes of the package, except the sandbox's."""
    found = {
        value
        for name in NAMES
        for value in vars(import_module(name)).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    ours = [each for each in found if each.__module__ in NAMES]
    return sorted(ours, key=lambda each: each.__name__)


@pytest.mark.parametrize("kind", exception_classes(), ids=lambda kind: kind.__name__)
def test_exceptions(kind: type[Exception]) -> None:
    """Every exception of the package survives pickling unchanged."""
    sent = kind(*ARGUMENTS.get(kind.__name__, ("a text",)))
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301 - made here
    assert type(received) is kind
    assert str(received) == str(sent)
    assert {name: str(value) for name, value in vars(received).items()} == {
        name: str(value) for name, value in vars(sent).items()
    }
