"""`has` is right."""

from collections.abc import Callable, Iterator
from typing import Any

import ccxt
import pytest

from suite.exchanges import Bench, Opened, sample_arguments

WORKS = (True, "emulated")


def _methods(exchange: Any) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """The entries of ``has`` that are methods, not mere properties such as ``swap``."""
    for name, says in exchange.has.items():
        method = getattr(exchange, name, None)
        if callable(method):
            yield name, method, says


def _push(name: str) -> bool:
    return name.startswith(("watch", "unWatch")) or name.endswith("Ws")


def _attempt(opened: Opened, method: Callable[..., Any]) -> Any:
    try:
        return opened.runner.run(lambda: method(**sample_arguments(method)))
    except Exception as error:  # noqa: BLE001 - the test decides which it must be
        return error


def test_what_has_affirms_works(bench: Bench) -> None:
    """Each entry of `has` that is true, and can be asked over HTTP, works."""
    account = next((case for case in bench.collection.cases() if case.vector.gives_balance), None)
    if account is None:
        pytest.skip("no vector gives a balance")
    with bench.opened(account) as opened:
        assert opened.exchange.has["fetchBalance"] is True
        failed = [
            f"{name}() gave {result!r}"
            for name, method, says in _methods(opened.exchange)
            if says in WORKS and not _push(name)
            if isinstance(result := _attempt(opened, method), Exception)
        ]
    assert not failed, "\n".join(failed)


def test_what_has_denies_is_not_supported(bench: Bench) -> None:
    """Each entry of `has` that is false raises NotSupported, and nothing is sent for it."""
    with bench.opened() as opened:
        wrong = [
            f"{name}() gave {result!r}"
            for name, method, says in _methods(opened.exchange)
            if says is False
            if not isinstance(result := _attempt(opened, method), ccxt.NotSupported)
        ]
        assert not wrong, "\n".join(wrong)
        assert not opened.play.requests
