"""Fuzzing: ``python -m tests.fuzz [--inputs N] [--seed S] [--only KIND] [--atheris]``.

Real answers are mutated at random: as JSON, as HTTP (head, framing, compression, in pieces), and as
messages of the push channel. Each input must either raise an exception of the error table or be
read just as an independent, slow and simple parser reads it.
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
from sunx_adapter.protocol.document import decode_json
from sunx_adapter.protocol.envelope import HttpAnswer, read_envelope
from sunx_adapter.protocol.errors import RULE_BY_CODE, TransientError
from sunx_adapter.protocol.push import AccountUpdate, Ping, pong_message, read_message
from sunx_adapter.wire.answer import RawAnswer, WireError
from sunx_adapter.wire.body import decompressed

KINDS = ("json", "http", "push")
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
    """Return a real answer with a few random errors."""
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
    """Return the exact balance as text, or ``None`` for an allowed exception."""
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
    """Return whether the input is a balance; raise ``AssertionError`` for a wrong one."""
    structure = outcome(body)
    if structure is None:
        return False
    # Compute it again by other means: Python's json, every number as text, exact fractions.
    answer = json.loads(body, parse_float=str, parse_int=str, parse_constant=_refuse)
    details = answer["data"]["details"]
    rows = list(details.values()) if isinstance(details, dict) else details
    totals: dict[str, Fraction] = {}
    frees: dict[str, Fraction] = {}
    for row in rows:
        code, equity = str(row["currency"]).upper(), _fraction(row["equity"])
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


# -- HTTP -----------------------------------------------------------------------------------

LIMIT = 4096
HEADS = [
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 404 No", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 None"),
    *(b"HTTP/1.1 099 Odd", b"HTTP/1.1 600 Odd", b"HTTP/2 200 OK", b"HTTP/1.1 200"),
]
LINES = [
    *(b"Content-Length: %d", b"Content-Length: %d ", b"content-length:%d", b"Content-Length: +%d"),
    *(b"Content-Length: %d, %d", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    *(b"Connection: close", b"Connection: keep-alive", b"X: y", b"X : y", b" folded", b"\x00: y"),
    *(b"Content-Encoding: gzip", b"Upgrade: x", b"Trailer: X"),
]


def http_bytes(chance: random.Random) -> bytes:
    """Return a random HTTP answer, some with extra bytes before or after it."""
    body = chance.choice(SEEDS)[: chance.choice((0, 1, 50, 1500, 5000))]
    lines = [chance.choice(LINES[:1] * 6 + LINES) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    chunked = any(b"chunked" in line for line in lines)
    length = len(body) + chance.choice((0, 0, 0, 0, 1, -1, 10**6))
    filled = [line.replace(b"%d", b"%d" % max(length, 0)) for line in lines]
    sent = body
    if chunked and chance.random() < 0.8:
        cut = chance.randrange(len(body) + 1)
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        sent += chance.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"00;a=b\r\n\r\n", b""))
    interim = chance.choice((b"",) * 6 + (b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n", b"\r\n"))
    head = chance.choice(HEADS[:1] * 6 + HEADS)
    text = interim + b"\r\n".join([head, *filled]) + b"\r\n\r\n" + sent
    text += chance.choice((b"",) * 4 + (b"\r\n", b"\n", b"x", b"HTTP/1.1 200 OK\r\n\r\n", text))
    if chance.random() < 0.3:
        place = chance.randrange(len(text))
        text = text[:place] + bytes([chance.randrange(256)]) + text[place + chance.randrange(2) :]
    return text


def simple_parse(text: bytes) -> tuple[int, bytes, bytes, bool] | None:
    """Return status, body, trailing bytes, and whether EOF ends the body; ``None`` if unsure."""
    head, ended, rest = text.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    match = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]*", first)
    if not ended or not match or not 200 <= int(match[1]) < 600:
        return None
    headers = [re.fullmatch(rb"([A-Za-z-]+):[ ]?([A-Za-z0-9=-]+)", line) for line in lines]
    if not all(headers):
        return None
    fields = [(each[1].lower(), each[2].lower()) for each in headers if each]
    names = [name for name, _ in fields]
    if {b"upgrade", b"content-encoding"} & set(names) or len(set(names)) < len(names):
        return None
    known = dict(fields)
    if b"content-length" in known and b"transfer-encoding" in known:
        return None
    if not known.get(b"content-length", b"0").isdigit():
        return None
    if int(match[1]) in (204, 304):
        return (int(match[1]), b"", rest, False) if not known.keys() - {b"content-length"} else None
    if b"content-length" in known:
        length = int(known[b"content-length"])
        return (int(match[1]), rest[:length], rest[length:], False) if len(rest) >= length else None
    if known.get(b"transfer-encoding") == b"chunked":
        body = b""
        while piece := re.match(rb"([0-9a-f]+)\r\n", rest):
            size = int(piece[1], 16)
            rest = rest[piece.end() :]
            if size == 0:
                return (int(match[1]), body, rest[2:], False) if rest[:2] == b"\r\n" else None
            if rest[size : size + 2] != b"\r\n":
                return None
            body, rest = body + rest[:size], rest[size + 2 :]
        return None
    return (int(match[1]), rest, b"", True) if not known.keys() - {b"x", b"connection"} else None


def check_http(text: bytes, chance: random.Random) -> bool:
    """Return whether the input is an answer; raise ``AssertionError`` if misread."""
    answer, place = RawAnswer(LIMIT), 0
    try:
        while place < len(text) and not answer.ended:
            size = chance.choice((1, 7, 100, 10_000))
            answer.feed(text[place : place + size])
            place += size
        if not answer.ended:
            answer.end()
    except WireError:
        read = simple_parse(text)
        assert read is None, text
        return False
    assert 200 <= answer.status < 600
    read = simple_parse(text)
    if answer.too_large:
        assert read is None or len(read[1]) > LIMIT, text
        return True
    assert len(answer.body) <= LIMIT
    if read is not None:
        assert (answer.status, answer.body) == read[:2], text
        has_tail = min(place, len(text)) > len(text) - len(read[2])
        assert not (answer.reusable and has_tail), text
    if answer.reusable and read is not None:
        assert b"connection: close\r\n" not in text.lower(), text
    decompressed(answer.body, answer.headers.get("content-encoding", ""), LIMIT)
    return True


# -- push channel ---------------------------------------------------------------------------


def check_push(body: bytes) -> bool:
    """Return whether the input is an account; raise ``AssertionError`` if REST differs."""
    try:
        message = read_message(body)
    except ccxt.BadResponse:
        return False
    if isinstance(message, Ping):
        json.loads(pong_message(message))
    if not isinstance(message, AccountUpdate):
        return False
    try:
        structure = balance_structure(
            message.answer, policy="margin", number=str, code_of=str.upper
        )
    except ccxt.BadResponse:
        return False
    rest = decode_json(body)
    assert structure["total"].keys() == {
        str(row["currency"]).upper() for row in read_account(rest).rows
    }
    return True


def fuzz(inputs: int, seed: int, kind: str = "json") -> Counter[bool]:
    """Check ``inputs`` inputs; count how many were read and how many were refused."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    if kind == "http":
        return Counter(check_http(http_bytes(chance), chance) for _ in range(inputs))
    tested = check if kind == "json" else check_push
    return Counter(tested(mutated(chance)) for _ in range(inputs))


def main() -> None:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument(
        "--atheris", action="store_true", help="guided by coverage; needs the package atheris"
    )
    parser.add_argument("--only", choices=KINDS, help="one kind of input")
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
    for kind in [options.only] if options.only else KINDS:
        start = time.monotonic()
        counted = fuzz(options.inputs, options.seed, kind)
        took = time.monotonic() - start
        print(
            f"{kind}, seed {options.seed}: {options.inputs} inputs in {took:.0f} s, "
            f"{counted[True]} of them read"
        )


if __name__ == "__main__":
    main()
