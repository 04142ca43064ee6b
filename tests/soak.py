"""Eight readers against a venue of which a fifth of all answers is faulty.

``python -m tests.soak [--reads N | --seconds S] [--seed S]`` checks that no balance is wrong, that
nothing hangs, that asyncio has nothing to complain of, and that neither memory nor open files
grow over the second half.
"""

import argparse
import asyncio
import gc
import logging
import os
import random
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import cycle
from pathlib import Path
from typing import Any

import ccxt

from sunx_adapter import AsyncHtxFutures, AsyncSunx, Sandbox
from sunx_adapter.sandbox import DEFAULT_ACCOUNTS, SandboxAccount

READERS = 8
ACCOUNTS_EACH = 16
CLASSES = {"sunx": AsyncSunx, "htxfutures": AsyncHtxFutures}
TIMEOUT_MS = 2000
FAULTS = [
    *("reset@0.02", "refuse@0.02", "silence@0.0005", "drip=0.3@0.0005", "cut@0.02"),
    *("garbage@0.01", "html=502@0.02", "status=503@0.01", "code=1004@0.02", "code=1003@0.01"),
    *("truncated@0.02", "null@0.01", "missing@0.01", "blank@0.01", "wrong-type@0.01"),
    "bomb=9@0.001",
]
MEMORY_GROWTH_MIB = 16
OPEN_FILES_GROWTH = 8


def accounts() -> list[SandboxAccount]:
    """So many users that their read limits do not bound the rate."""
    kinds = [account for account in DEFAULT_ACCOUNTS if account.name in ("main", "indebted")]
    return [
        replace(
            kind, name=f"{kind.name}-{number}", uid=f"{number}", api_key=f"{kind.api_key}-{number}"
        )
        for number in range(READERS * ACCOUNTS_EACH)
        for kind in kinds[number % 2 : number % 2 + 1]
    ]


def serve(seed: int) -> None:
    """The venue, in a process of its own, until its standard input ends."""
    with Sandbox(accounts(), faults=FAULTS, seed=seed) as sandbox:
        print(sandbox.url, flush=True)
        sys.stdin.read()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


async def read_all(url: str, reads: int, seconds: float) -> Counter[str]:
    """Read until there were that many reads, or for that long; what came of them."""
    counted: Counter[str] = Counter()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with Sandbox(accounts()) as known:  # to know what is right
        configs = [
            (make, known.config(exchange_id, account.name))
            for number, account in enumerate(known.accounts)
            for exchange_id, make in [list(CLASSES.items())[number // 2 % 2]]
        ]
        right = [await _right(*config) for config in configs]
    start = time.monotonic()
    figures: list[tuple[float, int]] = []

    async def reader(number: int) -> None:
        mine = range(number, len(configs), READERS)
        exchanges = [_exchange(*configs[index], url, retries=index % 3) for index in mine]
        try:
            for index, exchange in cycle(list(zip(mine, exchanges, strict=True))):
                if counted.total() >= reads or time.monotonic() - start > seconds:
                    return
                await read(exchange, right[index])
        finally:
            for exchange in exchanges:
                await exchange.close()

    async def read(exchange: Any, expected: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            balance = await exchange.fetch_balance()
        except ccxt.BaseError as error:
            counted[type(error).__name__] += 1
        else:
            figures = {code: balance[code] for code in balance["total"]}
            assert figures == expected, f"a wrong balance: {figures}"
            counted["balance"] += 1
        took = (time.monotonic() - began) * 1000
        assert took < TIMEOUT_MS + 1500, f"a call took {took:.0f} ms"

    async def watch() -> None:
        while True:
            gc.collect()
            figures.append((_memory_mib(), _open_files()))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(reader(number) for number in range(READERS)))
    watching.cancel()
    assert not complaints, complaints
    half = figures[len(figures) // 2 :]
    grown = half[-1][0] - half[0][0], half[-1][1] - half[0][1]
    assert grown[0] < MEMORY_GROWTH_MIB, f"memory grew by {grown[0]:.1f} MiB"
    assert grown[1] <= OPEN_FILES_GROWTH, f"open files grew by {grown[1]}"
    took = time.monotonic() - start
    print(
        f"{counted.total()} reads in {took:.0f} s, {counted['balance']} balances, "
        f"second half: memory {grown[0]:+.1f} MiB, open files {grown[1]:+d}"
    )
    return counted


def _exchange(make: Any, config: dict[str, Any], url: str, retries: int) -> Any:
    return make(
        {
            **config,
            "number": str,
            "timeout": TIMEOUT_MS,
            "options": {"maxRetriesOnFailure": retries},
            "urls": {"api": {"rest": url}},
        }
    )


async def _right(make: Any, config: dict[str, Any]) -> dict[str, Any]:
    async with make({**config, "number": str, "enableRateLimit": False}) as exchange:
        balance = await exchange.fetch_balance()
    for code in balance["total"]:
        figures = balance[code]
        assert Decimal(figures["free"]) + Decimal(figures["used"]) == Decimal(figures["total"])
    return {code: balance[code] for code in balance["total"]}


def soak(reads: int, seconds: float, seed: int) -> Counter[str]:
    """Start the venue and read."""
    warnings.simplefilter("error")
    # What is logged of retries is right, and too much to look at.
    logging.getLogger("sunx_adapter").setLevel(logging.ERROR)
    command = [sys.executable, "-m", "tests.soak", "--serve", "--seed", str(seed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as venue:
        assert venue.stdout is not None
        assert venue.stdin is not None
        try:
            return asyncio.run(read_all(venue.stdout.readline().strip(), reads, seconds))
        finally:
            venue.stdin.close()


def main() -> None:
    """Soak by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed)
        return
    print(f"seed {options.seed}")
    print(dict(soak(options.reads, options.seconds, options.seed).most_common()))


if __name__ == "__main__":
    main()
