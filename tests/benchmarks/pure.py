"""Benchmarks without a network: decoding and mapping, signing, making an exchange."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import ccxt

from sunx_adapter import HtxFutures
from sunx_adapter.balance import balance_structure
from sunx_adapter.protocol.account import read_account
from sunx_adapter.protocol.envelope import HttpAnswer, read_envelope
from tests.benchmarks.measure import KEYS, Measured, alternate
from tests.benchmarks.server import balance_body, ccxt_config


class _FixedHtx(ccxt.htx):  # type: ignore[misc]
    """ccxt's htx with a fixed answer, so that only its parsing and mapping are measured."""

    text: str

    def contract_private_get_v5_account_balance(self, params: object = None) -> Any:  # noqa: ARG002
        return self.parse_json(self.text)

    contractPrivateGetV5AccountBalance = contract_private_get_v5_account_balance  # noqa: N815


def _timed(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def measure(rounds: int) -> Iterator[Measured]:
    """Yield each row as soon as it is measured."""
    for currencies in (2, 100, 1000):
        yield _decode_and_map(currencies, rounds)
    yield _sign(rounds)
    yield _make(rounds)
    yield _memory()


def _decode_and_map(currencies: int, rounds: int) -> Measured:
    body = balance_body(currencies)
    exchange = HtxFutures(KEYS)
    codes: dict[str, str] = {}

    def code_of(currency_id: str) -> str:
        code = codes.get(currency_id)
        if code is None:
            code = codes[currency_id] = exchange.safe_currency_code(currency_id)
        return code

    def ours() -> object:
        answer = HttpAnswer(200, {}, body)
        document = read_envelope(answer, exchange.httpExceptions)
        account = read_account(document)
        return balance_structure(account, policy="margin", number=float, code_of=code_of)

    peer = _FixedHtx(ccxt_config("http://127.0.0.1:1"))
    peer.text = body.decode()
    calls = max(20_000 // currencies, 10)
    pair = alternate(rounds, lambda: _timed(ours, calls), lambda: _timed(peer.fetch_balance, calls))
    return Measured(f"decode + map, {currencies} currencies", "ccxt htx", *pair, goal=0.35)


def _sign(rounds: int) -> Measured:
    ours, peer = HtxFutures(KEYS), ccxt.htx(ccxt_config("http://127.0.0.1:1"))
    pair = alternate(
        rounds,
        lambda: _timed(lambda: ours.sign("v5/account/balance", "private", "GET", {}), 5000),
        lambda: _timed(
            lambda: peer.sign("v5/account/balance", ["contract", "private"], "GET", {}), 5000
        ),
    )
    return Measured("sign one request", "ccxt htx", *pair, goal=0.5)


def _make(rounds: int) -> Measured:
    pair = alternate(
        rounds,
        lambda: _timed(lambda: HtxFutures(KEYS), 100),
        lambda: _timed(lambda: ccxt.htx(KEYS), 100),
    )
    return Measured("make an exchange", "ccxt htx", *pair, goal=0.45)


def _memory() -> Measured:
    def kilobytes(kind: Callable[[dict[str, str]], object]) -> float:
        kind(KEYS)
        gc.collect()
        tracemalloc.start()
        kept = [kind(KEYS) for _ in range(100)]
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return traced / len(kept) / 1000

    return Measured(
        "memory of an exchange", "ccxt htx", kilobytes(HtxFutures), kilobytes(ccxt.htx), 0.3, "kB"
    )
