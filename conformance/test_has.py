"""The exchange's `has` is true."""

from collections.abc import Callable, Iterator
from typing import Any

import ccxt
import pytest

from suite.exchanges import ExchangeUnderTest, Opened, sample_arguments

WORKS = (True, "emulated")


def _methods(exchange: Any) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """The entries of ``has`` that are methods; others, like ``swap``, are properties."""
    for name, value in exchange.has.items():
        method = getattr(exchange, name, None)
        if callable(method):
            yield name, method, value


def _needs_push(name: str) -> bool:
    return name.startswith(("watch", "unWatch")) or name.endswith("Ws")


def _attempt(opened: Opened, method: Callable[..., Any]) -> Any:
    try:
        return opened.runner.run(lambda: method(**sample_arguments(method)))
    except Exception as error:  # noqa: BLE001 - checked by the test
        return error


def test_true_entries_work(subject: ExchangeUnderTest) -> None:
    """Each true entry of `has` that needs no push channel works."""
    account = next((case for case in subject.collection.cases() if case.vector.gives_balance), None)
    if account is None:
        pytest.skip("no vector gives a balance")
    with subject.opened(account) as opened:
        assert opened.exchange.has["fetchBalance"] is True
        failed = [
            f"{name}() gave {result!r}"
            for name, method, value in _methods(opened.exchange)
            if value in WORKS and not _needs_push(name)
            if isinstance(result := _attempt(opened, method), Exception)
        ]
    assert not failed, "\n".join(failed)


def test_false_entries_are_not_supported(subject: ExchangeUnderTest) -> None:
    """Each false entry of `has` raises NotSupported and sends no request."""
    with subject.opened() as opened:
        wrong = [
            f"{name}() gave {result!r}"
            for name, method, value in _methods(opened.exchange)
            if value is False
            if not isinstance(result := _attempt(opened, method), ccxt.NotSupported)
        ]
        assert not wrong, "\n".join(wrong)
        assert not opened.server.requests
