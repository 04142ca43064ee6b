"""Every vector, over HTTP: what must come out comes out, and nothing secret with it."""

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

import ccxt
import pytest

from suite.exchanges import Bench, Outcome
from suite.playback import Request
from suite.vectors import Played


@pytest.mark.is_the_vector
def test_vector(bench: Bench, played: Played) -> None:
    """The answer gives what the vector says."""
    outcome = bench.outcome(played, Decimal)
    if played.vector.gives_balance:
        _check_balance(outcome, played)
    else:
        _check_failure(outcome, played)
    if (path := bench.variant(played).path) is not None and outcome.requests:
        assert path in [request.path for request in outcome.requests]
    if (requests := played.vector.expect.get("requests")) is not None:
        assert len(outcome.requests) == requests, outcome.requests


def _check_balance(outcome: Outcome, played: Played) -> None:
    expect = played.vector.expect
    balance = outcome.given_balance()
    came = {code: balance[code] for code in balance["total"]}
    assert came == {
        code: {name: Decimal(text) for name, text in figures.items()}
        for code, figures in expect["balance"].items()
    }
    for name in ("timestamp", "datetime"):
        assert balance.get(name) == expect[name], name


def _check_failure(outcome: Outcome, played: Played) -> None:
    expect = played.vector.expect
    assert outcome.error is not None, f"no exception, but {outcome.balance}"
    assert ccxt_name(outcome.error) == expect["exception"], repr(outcome.error)
    missing = [word for word in expect.get("words", ()) if word not in str(outcome.error)]
    assert not missing, f"{missing} not in {outcome.error}"


def ccxt_name(error: Exception) -> str:
    """The name of the exception's class, or of the class of ccxt's that it is made of."""
    return next(
        (kind.__name__ for kind in type(error).__mro__ if getattr(ccxt, kind.__name__, 0) is kind),
        type(error).__name__,
    )


def test_account_summary(bench: Bench, summarised: Played) -> None:
    """The account as a whole, where an exchange can tell of it, is what the vector says."""
    with bench.opened(summarised) as opened:
        if not hasattr(opened.exchange, "fetch_account_summary"):
            pytest.skip("the exchange has no fetch_account_summary()")
        summary = opened.call("fetch_account_summary")
    for name, text in summarised.vector.expect["account"].items():
        figure = getattr(summary, name)
        assert (figure.name == text) if name == "state" else (figure == Decimal(text)), name


def test_no_secret_is_told(bench: Bench, played: Played) -> None:
    """No exception, traceback or log line carries a key, a secret or a signature."""
    outcome = bench.outcome(played, Decimal)
    texts = {"log": outcome.log}
    if outcome.error is not None:
        texts["exception"] = "".join(traceback.format_exception(outcome.error))
        texts["repr"] = repr(outcome.error)
        texts["traceback"] = "\n".join(_locals(outcome.error.__traceback__))
    secrets = list(_secrets(bench, played, outcome.requests))
    for where, text in texts.items():
        for what, secret in secrets:
            assert secret not in text, f"the {where} holds the {what}"


def test_no_secret_is_printed(
    bench: Bench, repeating: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `verbose` prints carries no key, secret or signature, though the venue repeats them."""
    # Whether the call may fail is the vector's own test.
    with contextlib.suppress(Exception), bench.opened(repeating, verbose=True) as opened:
        requests = opened.play.requests
        opened.call("fetch_balance", *repeating.vector.arguments())
    printed = capsys.readouterr().out
    for what, secret in _secrets(bench, repeating, requests):
        assert secret not in printed, f"what is printed holds the {what}"


def _secrets(
    bench: Bench, played: Played, requests: Iterable[Request]
) -> Iterator[tuple[str, str]]:
    """Everything that nobody may see, with its name."""
    config = bench.config(played, "")
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
    """What a traceback that shows local variables would show, but for the suite's own frames."""
    here = str(Path(__file__).parent)
    for frame, _ in traceback.walk_tb(trace):
        if not frame.f_code.co_filename.startswith(here):
            yield from map(repr, frame.f_locals.values())
