"""Compares ccxt's own ``htx`` with the vectors: its amounts must equal theirs.

``docs/comparison.md`` has a table of ccxt's results. These tests check it, or update it with
``--write-docs``.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import ccxt
import pytest

from suite.server import ServerThread
from suite.vectors import DEFAULT_VECTORS, Vector, load_collection
from sunx_adapter.host import ExchangeHost

PAGE: Final = Path(__file__).parent.parent / "docs" / "comparison.md"
MARKS: Final = ("<!-- ccxt -->\n", "<!-- /ccxt -->")
MARKET: Final = {
    "id": "BTC-USDT", "symbol": "BTC/USDT:USDT", "base": "BTC", "quote": "USDT",
    "settle": "USDT", "type": "swap", "spot": False, "swap": True, "linear": True,
    "contract": True, "active": True, "precision": {}, "limits": {},
}  # fmt: skip
"""Set in the configuration, so that ccxt requests only the balance."""


def vectors() -> list[Vector]:
    """The vectors with a plain answer to a plain call; ccxt cannot be tested with the others."""
    return [
        vector
        for vector in load_collection(DEFAULT_VECTORS).vectors
        if not (vector.params or vector.config or vector.content.get("transport"))
        and vector.content.get("answer")
    ]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """ccxt's exchange: one for all vectors, because making it takes long."""
    exchange = ccxt.htx(
        {
            "apiKey": "conformance-key",
            "secret": "conformance-secret",
            "enableRateLimit": False,
            "markets": {MARKET["symbol"]: MARKET},
            "options": {"defaultType": "swap"},
            "timeout": 20_000,
        }
    )
    with closing(exchange):
        yield exchange


def ccxt_outcome(exchange: Any, server_thread: ServerThread, vector: Vector) -> Any:
    """ccxt's balance or exception."""
    with server_thread.serving(vector) as server:
        exchange.urls["api"]["contract"] = server.address
        try:
            return exchange.fetch_balance()
        except Exception as error:  # noqa: BLE001 - whatever ccxt raises
            return error


def verdict(vector: Vector, outcome: Any) -> str:
    """The column of the table for ccxt's outcome."""
    if isinstance(outcome, Exception):
        if vector.gives_balance:
            return "an exception instead of a balance"
        same = type(outcome).__name__ == vector.expect["exception"]
        return "right" if same else "another exception"
    totals = outcome["total"]
    if not vector.gives_balance:
        return "an empty balance, no error" if not totals else "a balance, no error"
    if any(outcome["free"][code] is None for code in totals):
        return "free None"
    expected = {code: float(each["free"]) for code, each in vector.expect["balance"].items()}
    same = expected == outcome["free"]
    return "right" if same else "other figures"


COLUMNS: Final = (
    *("right", "free None", "an empty balance, no error", "a balance, no error"),
    *("other figures", "an exception instead of a balance", "another exception"),
)


def table(counted: Mapping[str, Counter[str]]) -> str:
    """The table of docs/comparison.md."""
    lines = [
        f"| answers ({sum(c.total() for c in counted.values())} vectors) | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    lines += [
        f"| {group} | {' | '.join(str(counted[group][column] or '') for column in COLUMNS)} |"
        for group in sorted(counted)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def outcomes(theirs: Any, server_thread: ServerThread) -> list[tuple[Vector, Any]]:
    """ccxt's outcome for every vector."""
    return [(vector, ccxt_outcome(theirs, server_thread, vector)) for vector in vectors()]


def test_ccxt_agrees_where_it_gives_free(outcomes: list[tuple[Vector, Any]]) -> None:
    """If a row has available_margin, ccxt's free is the vector's, as a float."""
    compared = 0
    for vector, balance in outcomes:
        if isinstance(balance, Exception) or not vector.gives_balance:
            continue
        details = balance["info"]["data"]["details"]
        if not isinstance(details, list):
            continue  # ccxt cannot read such rows
        ids = [str(row["currency"]).upper() for row in details]
        if len(set(ids)) < len(ids) or {"XBT", "BTC"} <= set(ids):
            continue  # of several rows of one code, ccxt keeps the last
        for row in details:
            if not isinstance(row.get("available_margin"), str):
                continue
            code = {"XBT": "BTC", "BCHSV": "BSV"}.get(
                row["currency"].upper(), row["currency"].upper()
            )
            if balance["free"].get(code) is None:
                continue
            expected = vector.expect["balance"][code]["free"]
            assert balance["free"][code] == float(expected), vector
            assert Decimal(row["available_margin"]) == Decimal(expected), vector
            compared += 1
    assert compared, "nothing was compared"


def test_generated_accounts_are_the_same(theirs: Any, server_thread: ServerThread) -> None:
    """For random accounts whose rows have available_margin, ours and ccxt's amounts are equal."""
    generator = random.Random(4_5_90)  # noqa: S311 - the same accounts each time
    for _ in range(40):
        body = {"text": _answer(generator)}
        vector = Vector(Path("generated.json"), {"answer": {"body": body}})
        expected = ccxt_outcome(theirs, server_thread, vector)
        with server_thread.serving(vector) as server:
            config = {"apiKey": "conformance-key", "secret": "conformance-secret"}
            urls = {"api": {"rest": server.address}}
            made = ExchangeHost().create("htxfutures", {**config, "urls": urls})
            with closing(made) as exchange:
                ours = exchange.fetch_balance()
        assert ours["free"] == expected["free"]
        assert ours["total"] == expected["total"]


def _answer(generator: random.Random) -> str:
    def amount() -> str:
        sign = generator.choice(("", "-"))
        return f"{sign}{generator.randrange(10**6)}.{generator.randrange(10**18):018}"

    fields = ("equity", "available", "available_margin", "initial_margin")
    details = [
        {"currency": f"C{number}", **{field: amount() for field in fields}}
        for number in range(generator.randrange(1, 12))
    ]
    return json.dumps({"code": 200, "data": {"details": details}, "ts": 1770293281344})


def test_table_of_the_docs(outcomes: list[tuple[Vector, Any]], pytestconfig: pytest.Config) -> None:
    """The table in the docs has the results of the installed ccxt."""
    if not PAGE.exists():
        pytest.skip("the suite was copied without the project's docs")
    counted: dict[str, Counter[str]] = {}
    for vector, outcome in outcomes:
        counted.setdefault(vector.group, Counter())[verdict(vector, outcome)] += 1
    before = PAGE.read_text("utf-8")
    block = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
    after = block.sub(lambda _: MARKS[0] + table(counted) + MARKS[1], before)
    if pytestconfig.getoption("--write-docs"):
        PAGE.write_text(after, "utf-8")
    elif ccxt.__version__ not in before:
        pytest.skip(f"the table in the docs is for another ccxt version than {ccxt.__version__}")
    else:
        assert after == before
