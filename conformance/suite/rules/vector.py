"""Rules about the vector's own expectation, and about secrets."""

import contextlib
import io
import traceback
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import ccxt
import pytest

from suite.exchanges import ExchangeUnderTest, Outcome
from suite.rules.rule import Rule, rule_for
from suite.server import Request
from suite.vectors import Case, Vector

RULES: Final[list[Rule]] = []

_SUITE: Final = str(Path(__file__).parent.parent.parent)


@rule_for(RULES)
def the_vector_holds(subject: ExchangeUnderTest, case: Case) -> None:
    """The answer gives the expected balance or exception."""
    outcome = subject.outcome(case, Decimal)
    if case.vector.gives_balance:
        _check_balance(outcome, case)
    else:
        _check_failure(outcome, case)
    if (path := subject.variant(case).path) is not None and outcome.requests:
        assert path in [request.path for request in outcome.requests]
    if (requests := case.vector.expect.get("requests")) is not None:
        assert len(outcome.requests) == requests, outcome.requests


def _check_balance(outcome: Outcome, case: Case) -> None:
    expect = case.vector.expect
    balance = outcome.balance_or_raise()
    figures = {code: balance[code] for code in balance["total"]}
    assert figures == {
        code: {name: Decimal(text) for name, text in expected.items()}
        for code, expected in expect["balance"].items()
    }
    for name in ("timestamp", "datetime"):
        assert balance.get(name) == expect[name], name


def _check_failure(outcome: Outcome, case: Case) -> None:
    expect = case.vector.expect
    assert outcome.error is not None, f"no exception, but {outcome.balance}"
    assert ccxt_name(outcome.error) == expect["exception"], repr(outcome.error)
    missing = [word for word in expect.get("words", ()) if word not in str(outcome.error)]
    assert not missing, f"{missing} not in {outcome.error}"


def ccxt_name(error: Exception) -> str:
    """The name of the exception's nearest ccxt class, or of its own class if there is none."""
    return next(
        (kind.__name__ for kind in type(error).__mro__ if getattr(ccxt, kind.__name__, 0) is kind),
        type(error).__name__,
    )


def _has_account(vector: Vector) -> bool:
    return "account" in vector.expect


@rule_for(RULES, _has_account)
def account_summary(subject: ExchangeUnderTest, case: Case) -> None:
    """The account summary, if the exchange has one, is the expected one."""
    with subject.opened(case) as opened:
        if not hasattr(opened.exchange, "fetch_account_summary"):
            pytest.skip("the exchange has no fetch_account_summary()")
        summary = opened.call("fetch_account_summary")
    for name, text in case.vector.expect["account"].items():
        value = getattr(summary, name)
        assert (value.name == text) if name == "state" else (value == Decimal(text)), name


@rule_for(RULES)
def no_secret_in_errors_and_logs(subject: ExchangeUnderTest, case: Case) -> None:
    """No exception, traceback or log line contains a key, a secret or a signature."""
    outcome = subject.outcome(case, Decimal)
    texts = {"log": outcome.log}
    if outcome.error is not None:
        texts["exception"] = "".join(traceback.format_exception(outcome.error))
        texts["repr"] = repr(outcome.error)
        texts["traceback"] = "\n".join(_locals(outcome.error.__traceback__))
    secrets = list(_secrets(subject, case, outcome.requests))
    for where, text in texts.items():
        for what, secret in secrets:
            assert secret not in text, f"the {where} contains the {what}"


def _repeats_the_request(vector: Vector) -> bool:
    return vector.repeats_the_request


@rule_for(RULES, _repeats_the_request)
def no_secret_is_printed(subject: ExchangeUnderTest, case: Case) -> None:
    """The output of `verbose` has no key, secret or signature, even if the venue repeats them."""
    requests: list[Request] = []
    # Whether the call may fail is checked by the vector's own rule.
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(Exception),
        subject.opened(case, verbose=True) as opened,
    ):
        requests = opened.server.requests
        opened.call("fetch_balance", *case.vector.arguments())
    for what, secret in _secrets(subject, case, requests):
        assert secret not in printed.getvalue(), f"the output contains the {what}"


def _secrets(
    subject: ExchangeUnderTest, case: Case, requests: Iterable[Request]
) -> Iterator[tuple[str, str]]:
    """All secrets with their names: keys of the configuration, signatures of the requests."""
    config = subject.config(case, "")
    for name in ("apiKey", "secret", "privateKey", "password"):
        if value := config.get(name):
            yield name, value
    names = subject.collection.settings.secret_query
    for request in requests:
        query = urlsplit(request.target).query
        raw = [pair.partition("=")[::2] for pair in query.split("&")]
        for name, value in {*parse_qsl(query), *raw}:
            if name in names and value:
                yield name, value


def _locals(trace: TracebackType | None) -> Iterator[str]:
    """The local variables of a traceback's frames, except for the suite's own frames."""
    for frame, _ in traceback.walk_tb(trace):
        if not frame.f_code.co_filename.startswith(_SUITE):
            yield from map(repr, frame.f_locals.values())
