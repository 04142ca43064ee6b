"""Fuzzing of decoding and mapping: ``python -m tests.fuzz [--inputs N] [--seed S] [--atheris]``.

Real answers are mutated at random. Whatever comes of it must be an exception of the error table,
or a balance that an independent, slow reading of the same bytes agrees with.
"""

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import ccxt
from ccxt.base.errors import BaseError

from sunx_adapter.balance import balance_structure
from sunx_adapter.protocol.account import read_account, summarize
from sunx_adapter.protocol.envelope import HttpAnswer, read_envelope
from sunx_adapter.protocol.errors import RULE_BY_CODE, TransientError

SEEDS = [file.read_bytes() for file in sorted((Path(__file__).parent / "payloads").glob("*.json"))]
TOKENS = [
    *(b'""', b"null", b"true", b"{}", b"[]", b"[[]]", b"NaN", b"Infinity", b"-0", b"1e999"),
    *(b'"NaN"', b'"Infinity"', b'"1e5"', b'"1_0"', b'" 1"', b'"-"', b'"0x1"', b'"\xd9\xa3"'),
    *(b'"\\ud800"', b'"\\u0000"', b'"1"', b"0.1", b"1" * 400, b'"' + b"9" * 101 + b'"'),
    *(b'"code":200,', b'"equity":"1",', b'"data":null,', b'"details":{},', b'"ts":"x",'),
    *(b"[" * 2000, b'{"a":' * 2000, b"\xff", b"\xef\xbb\xbf", b":", b",", b'"', b"\\"),
]
ALLOWED = {rule.exception for rule in RULE_BY_CODE.values()} | {
    ccxt.BadResponse,
    ccxt.ExchangeError,
}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def mutated(chance: random.Random) -> bytes:
    """A real answer with a few wounds."""
    body = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(body) + 1)
        match chance.randrange(6):
            case 0:
                body[place:place] = chance.choice(TOKENS)
            case 1:
                del body[place : place + chance.choice((1, 1, 5, 50))]
            case 2:
                body[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                end = place + chance.choice((2, 20, 200))
                body[place:place] = body[place:end]
            case 4:
                values = [*re.finditer(rb':("[^"]*"|\d+)', body)]
                if values:
                    start, end = chance.choice(values).span(1)
                    body[start:end] = chance.choice(TOKENS)
            case _:
                del body[place:]
    return bytes(body)


def outcome(body: bytes) -> dict[str, Any] | None:
    """The exact balance as text, or ``None`` for an exception that may be."""
    try:
        document = read_envelope(HttpAnswer(200, {}, body), ccxt.Exchange.httpExceptions)
        answer = read_account(document)
        structure = balance_structure(answer, policy="margin", number=str, code_of=str.upper)
    except (BaseError, TransientError) as error:
        kind = type(error.error if isinstance(error, TransientError) else error)
        assert kind in ALLOWED, f"{kind} for {body!r}"
        return None
    with contextlib.suppress(ccxt.BadResponse):
        summarize(answer)
    return structure


def check(body: bytes) -> bool:
    """Whether it is a balance; an ``AssertionError`` if it is a wrong one."""
    structure = outcome(body)
    if structure is None:
        return False
    # Read anew, by other means: Python's own JSON, every number as its text, exact fractions.
    answer = json.loads(body, parse_float=str, parse_int=str, parse_constant=_refuse)
    details = answer["data"]["details"]
    rows = list(details.values()) if isinstance(details, dict) else details
    totals: dict[str, Fraction] = {}
    frees: dict[str, Fraction] = {}
    for row in rows:
        code, equity = row["currency"].upper(), _fraction(row["equity"])
        free = row.get("available_margin", None)
        if "available_margin" not in row:
            frees[code] = frees.get(code, Fraction(0)) + equity - _fraction(row["initial_margin"])
        else:
            frees[code] = frees.get(code, Fraction(0)) + _fraction(free)
        totals[code] = totals.get(code, Fraction(0)) + equity
        _fraction(row["available"])
    assert {code: Fraction(text) for code, text in structure["total"].items()} == totals, body
    assert {code: Fraction(text) for code, text in structure["free"].items()} == frees, body
    for code, total in totals.items():
        used = Decimal(structure["used"][code])
        assert used.is_finite()
        assert Fraction(used) == total - frees[code], body
    return True


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} was read as JSON")


def _fraction(value: object) -> Fraction:
    assert isinstance(value, str), f"{value!r} was read as an amount"
    assert NUMBER.fullmatch(value), f"{value!r} was read as an amount"
    return Fraction(value)


def fuzz(inputs: int, seed: int) -> Counter[bool]:
    """Check that many inputs; how many were balances and how many were not."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    return Counter(check(mutated(chance)) for _ in range(inputs))


def main() -> None:
    """Fuzz by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument(
        "--atheris", action="store_true", help="guided by coverage; needs the package atheris"
    )
    options = parser.parse_args()
    if options.atheris:
        import atheris  # noqa: PLC0415 - not installed with the tests

        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(SEEDS):
                (Path(corpus) / str(number)).write_bytes(seed)
            atheris.instrument_all()
            atheris.Setup([sys.argv[0], f"-runs={options.inputs}", corpus], check)
            atheris.Fuzz()
        return
    start = time.monotonic()
    counted = fuzz(options.inputs, options.seed)
    took = time.monotonic() - start
    print(f"seed {options.seed}: {options.inputs} inputs in {took:.0f} s, {counted[True]} balances")


if __name__ == "__main__":
    main()
