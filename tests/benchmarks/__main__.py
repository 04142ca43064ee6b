"""This package and its peers in alternating rounds: ``python -m tests.benchmarks [--json]``."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict

import aiohttp
import ccxt
import httpx

from tests.benchmarks import process, pure, wire
from tests.benchmarks.measure import Measured

PARTS = ("wire", "pure", "process")


def measured(part: str, rounds: int, calls: int) -> Iterator[Measured]:
    """Yield the rows of one part, each as soon as it is measured."""
    if part == "wire":
        return wire.measure(rounds, calls)
    return pure.measure(rounds) if part == "pure" else process.measure(rounds)


def main() -> None:
    """Measure everything and print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=640, help="whole calls per round and side")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, ccxt {ccxt.__version__}, "
        f"httpx {httpx.__version__}, aiohttp {aiohttp.__version__}, {options.rounds} rounds\n",
        file=sys.stderr,
    )
    rows = []
    if not options.json:
        print("| what | peer | ours | peer's | ratio | goal | |\n|---|---|---|---|---|---|---|")
    for part in PARTS if options.only is None else [options.only]:
        for row in measured(part, options.rounds, options.calls):
            rows.append(row)
            if not options.json:
                result = f"{row.result:+.1f} {row.unit}" if row.difference else f"{row.result:.2f}"
                print(
                    f"| {row.what} | {row.peer} | {row.ours:.3g} {row.unit} "
                    f"| {row.theirs:.3g} {row.unit} | {result} | {row.goal:g} "
                    f"| {'reached' if row.reached else 'missed'} |",
                    flush=True,
                )
    if options.json:
        json.dump([{**asdict(row), "result": row.result} for row in rows], sys.stdout, indent=2)


if __name__ == "__main__":
    main()
