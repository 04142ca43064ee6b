"""Latency of a stream: ``python -m tests.benchmarks.stream [--seconds 60] [--rate 1000]``.

A venue in a separate process pushes changes at this rate, each with the time it was sent. A quick
and a slow task watch over one connection. The output has the age of the balances that each task
gets, their number, and the growth of memory. The goals are 50 ms for the quick task (99th
percentile) and no growth after the first seconds.
"""

import argparse
import asyncio
import gzip
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

from sunx_adapter import AsyncHtxFutures

LIVE = Path(__file__).parent.parent / "payloads" / "htx-v5-live-stream.json"
WARM_UP_SECONDS = 3.0
GOAL_MS = 50.0
SLOW_SECONDS = 0.25
_KIB = 1024 if sys.platform != "darwin" else 1


def _serve(ready: Connection, rate: float) -> None:
    async def push(socket: web.WebSocketResponse) -> None:
        message: dict[str, Any] = json.loads(LIVE.read_bytes())
        data, row = message["data"], message["data"]["details"][0]
        start = time.monotonic()
        for number in range(sys.maxsize):
            await asyncio.sleep(max(start + number / rate - time.monotonic(), 0))
            data["version"] += 1
            message["ts"] += 1
            row["equity"] = row["available"] = f"{time.monotonic():.6f}"
            text = json.dumps(message).encode()
            await socket.send_bytes(gzip.compress(text, compresslevel=1))

    async def serve_push(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        pushing: list[asyncio.Task[None]] = []
        async for frame in socket:
            op = json.loads(frame.data)["op"]
            await socket.send_json({"op": op, "err-code": 0, "ts": 1})
            if op == "sub":
                pushing.append(asyncio.create_task(push(socket)))
        for task in pushing:
            task.cancel()
        return socket

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/ws/v5/notification", serve_push)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def push_server(rate: float) -> Iterator[str]:
    """Run a push channel in a separate process; yield its address."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sending, rate), daemon=True)
    process.start()
    try:
        yield f"ws://127.0.0.1:{receiving.recv()}"
    finally:
        process.terminate()
        process.join()


@dataclass
class Watcher:
    """A task that watches, and the ages of its balances in ms."""

    pause: float
    ages: list[float] = field(default_factory=list)

    async def watch(self, exchange: Any, until: float) -> None:
        """Watch until this time."""
        async for balance in exchange.watch_balances():
            now = time.monotonic()
            self.ages.append((now - float(balance["USDT"]["total"])) * 1000)
            if now > until:
                return
            if self.pause:
                await asyncio.sleep(self.pause)

    def line(self, name: str, seconds: float) -> str:
        """Return a line of the table."""
        cuts = statistics.quantiles(self.ages, n=100)
        return (
            f"{name:12} {len(self.ages) / seconds:10.0f} {statistics.median(self.ages):9.2f} "
            f"{cuts[98]:9.2f} {max(self.ages):9.2f}"
        )


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / 2**20


async def measure(seconds: float, rate: float) -> tuple[Watcher, Watcher, float, float]:
    """Return the quick and the slow task, and the peak memory in MiB before and after."""
    quick, slow = Watcher(0.0), Watcher(SLOW_SECONDS)
    with push_server(rate) as address:
        keys = {"apiKey": "benchmark", "secret": "benchmark"}
        config = {**keys, "urls": {"api": {"stream": address}}}
        async with AsyncHtxFutures(config) as exchange:
            await Watcher(0.0).watch(exchange, time.monotonic() + WARM_UP_SECONDS)
            before, until = _memory_mib(), time.monotonic() + seconds
            await asyncio.gather(quick.watch(exchange, until), slow.watch(exchange, until))
    return quick, slow, before, _memory_mib()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.stream", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1000, help="changes a second")
    options = parser.parse_args()
    began = time.process_time()
    quick, slow, before, after = asyncio.run(measure(options.seconds, options.rate))
    share = (time.process_time() - began) / (options.seconds + WARM_UP_SECONDS)
    print(f"{options.rate:g} changes a second for {options.seconds:g} s")
    print(f"{'task':12} {'balances/s':>10} {'median ms':>9} {'99% ms':>9} {'worst ms':>9}")
    print(quick.line("quick", options.seconds))
    print(slow.line(f"every {SLOW_SECONDS:g} s", options.seconds))
    print(f"memory: {before:.1f} MiB, {after - before:+.1f} MiB by the end; CPU {share:.0%}")
    met = statistics.quantiles(quick.ages, n=100)[98] <= GOAL_MS
    print(f"goal of {GOAL_MS:g} ms: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
