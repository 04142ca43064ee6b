"""What the vector itself says, and that no secret leaves the exchange."""

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

from suite.exchanges import Bench, Outcome
from suite.playback import Request
from suite.rules.rule import Rule, rule_for
from suite.vectors import Case, Vector

RULES: Final[list[Rule]] = []

_SUITE: Final = str(Path(__file__).parent.parent.parent)


@rule_for(RULES)
def the_vector_holds(bench: Bench, case: Case) -> None:
    """The answer gives what the vector says."""
    outcome = bench.outcome(case, Decimal)
    if case.vector.gives_balance:
        _check_balance(outcome, case)
    else:
        _check_failure(outcome, case)
    if (path := bench.variant(case).path) is not None and outcome.requests:
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
    """The name of the exception's nearest class that ccxt has, or of its own class."""
    return next(
        (kind.__name__ for kind in type(error).__mro__ if getattr(ccxt, kind.__name__, 0) is kind),
        type(error).__name__,
    )


def _has_account(vector: Vector) -> bool:
    return "account" in vector.expect


@rule_for(RULES, _has_account)
def account_summary(bench: Bench, case: Case) -> None:
    """The summary of the whole account, if the exchange has one, is what the vector says."""
    with bench.opened(case) as opened:
        if not hasattr(opened.exchange, "fetch_account_summary"):
            pytest.skip("the exchange has no fetch_account_summary()")
        summary = opened.call("fetch_account_summary")
    for name, text in case.vector.expect["account"].items():
        figure = getattr(summary, name)
        assert (figure.name == text) if name == "state" else (figure == Decimal(text)), name


@rule_for(RULES)
def no_secret_in_errors_and_logs(bench: Bench, case: Case) -> None:
    """No exception, traceback or log line carries a key, a secret or a signature."""
    outcome = bench.outcome(case, Decimal)
    texts = {"log": outcome.log}
    if outcome.error is not None:
        texts["exception"] = "".join(traceback.format_exception(outcome.error))
        texts["repr"] = repr(outcome.error)
        texts["traceback"] = "\n".join(_locals(outcome.error.__traceback__))
    secrets = list(_secrets(bench, case, outcome.requests))
    for where, text in texts.items():
        for what, secret in secrets:
            assert secret not in text, f"the {where} holds the {what}"


def _repeats_the_request(vector: Vector) -> bool:
    return vector.repeats_the_request


@rule_for(RULES, _repeats_the_request)
def no_secret_is_printed(bench: Bench, case: Case) -> None:
    """What `verbose` prints has no key, secret or signature, though the venue repeats them."""
    requests: list[Request] = []
    # Whether the call may fail is for the vector's own rule.
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(Exception),
        bench.opened(case, verbose=True) as opened,
    ):
        requests = opened.play.requests
        opened.call("fetch_balance", *case.vector.arguments())
    for what, secret in _secrets(bench, case, requests):
        assert secret not in printed.getvalue(), f"what is printed holds the {what}"


def _secrets(bench: Bench, case: Case, requests: Iterable[Request]) -> Iterator[tuple[str, str]]:
    """Everything that nobody may see, with its name."""
    config = bench.config(case, "")
    for name in ("apiKey", "secret", "privateKey", "password"):
        if value := config.get(name):
            yield name, value
    names = bench.collection.settings.secret_query
    for request in requests:
        query = urlsplit(request.target).query
        raw = [pair.partition("=")[::2] for pair in query.split("&")]
        for name, value in {*parse_qsl(query), *raw}:
            if name in names and value:
                yield name, value


def _locals(trace: TracebackType | None) -> Iterator[str]:
    """What a traceback with local variables would show, except for the suite's own frames."""
    for frame, _ in traceback.walk_tb(trace):
        if not frame.f_code.co_filename.startswith(_SUITE):
            yield from map(repr, frame.f_locals.values())
