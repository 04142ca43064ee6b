"""Ours against ccxt's, in turn in one run, as ratios of medians.

``python -m tests.benchmarks [--rounds N] [--json]``
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import ccxt
import ccxt.async_support

from sunx_adapter import AsyncHtxFutures, HtxFutures
from tests.benchmarks.server import bare_server

KEYS = {"apiKey": "benchmark-access-key", "secret": "benchmark-secret"}
Timed = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the result; times are microseconds per call, medians over the rounds."""

    what: str
    peer: str
    ours_us: float
    peer_us: float
    goal: float

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours_us / self.peer_us


def _ccxt_config(url: str) -> dict[str, Any]:
    # Markets given, so that ccxt too needs but one request per balance.
    market = {
        "id": "BTC-USDT", "symbol": "BTC/USDT:USDT", "base": "BTC", "quote": "USDT",
        "settle": "USDT", "type": "swap", "spot": False, "swap": True, "linear": True,
        "contract": True, "active": True, "precision": {}, "limits": {},
    }  # fmt: skip
    return {
        **KEYS,
        "enableRateLimit": False,
        "urls": {"api": {"contract": url, "spot": url}},
        "markets": {"BTC/USDT:USDT": market},
        "options": {"defaultType": "swap"},
    }


def _our_config(url: str) -> dict[str, Any]:
    return {**KEYS, "enableRateLimit": False, "urls": {"api": {"rest": url}}}


def _time_sync(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


async def _time_async(call: Callable[[], Awaitable[object]], calls: int, at_once: int) -> float:
    async def work() -> None:
        for _ in range(calls // at_once):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return (time.perf_counter() - start) / (calls // at_once * at_once) * 1e6


def measure_sync(currencies: int, rounds: int, calls: int, goal: float) -> Measured:
    """Whole synchronous calls."""
    with bare_server(currencies) as url, HtxFutures(_our_config(url)) as ours:
        peer = ccxt.htx(_ccxt_config(url))
        ours_us, peer_us = [], []
        for round_number in range(rounds + 1):
            mine = _time_sync(ours.fetch_balance, calls)
            theirs = _time_sync(peer.fetch_balance, calls)
            if round_number:  # the first warms up
                ours_us.append(mine)
                peer_us.append(theirs)
    return Measured(
        f"sync, {currencies} currencies",
        "ccxt htx",
        statistics.median(ours_us),
        statistics.median(peer_us),
        goal,
    )


async def measure_async(
    currencies: int, at_once: int, rounds: int, calls: int, goal: float
) -> Measured:
    """Whole asynchronous calls."""
    with bare_server(currencies) as url:
        peer = ccxt.async_support.htx(_ccxt_config(url))
        async with AsyncHtxFutures(_our_config(url)) as ours:
            ours_us, peer_us = [], []
            for round_number in range(rounds + 1):
                mine = await _time_async(ours.fetch_balance, calls, at_once)
                theirs = await _time_async(peer.fetch_balance, calls, at_once)
                if round_number:
                    ours_us.append(mine)
                    peer_us.append(theirs)
        await peer.close()
    return Measured(
        f"async, {at_once} at once, {currencies} currencies",
        "ccxt htx",
        statistics.median(ours_us),
        statistics.median(peer_us),
        goal,
    )


def main() -> None:
    """Measure everything and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=640, help="calls per round and side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds, calls = options.rounds, options.calls
    rows = [
        measured
        for currencies, goal in ((2, 0.8), (100, 0.5))
        for measured in (
            measure_sync(currencies, rounds, calls, goal),
            asyncio.run(measure_async(currencies, 1, rounds, calls, goal)),
            asyncio.run(measure_async(currencies, 32, rounds, calls, goal)),
        )
    ]
    if options.json:
        json.dump([{**asdict(row), "ratio": row.ratio} for row in rows], sys.stdout, indent=2)
        return
    print(f"Python {sys.version.split()[0]}, ccxt {ccxt.__version__}, {options.rounds} rounds")
    print(f"{'whole call':40} {'ours µs':>9} {'ccxt µs':>9} {'ratio':>6} {'goal':>6}")
    for row in rows:
        print(
            f"{row.what:40} {row.ours_us:9.0f} {row.peer_us:9.0f} {row.ratio:6.2f} {row.goal:6.2f}"
        )


if __name__ == "__main__":
    main()
