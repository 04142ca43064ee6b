"""Benchmark of fleets: ``python -m tests.benchmarks.fleet [once | polled | watched | kills]``.

A venue in a process of its own answers any number of accounts; each balance says when it was sent.
Two workers read. Everything runs on this machine, so the venue uses its cores, too.
"""

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from sunx_adapter import AsyncHtxFutures
from sunx_adapter.fleet import Fleet
from sunx_adapter.fleet.worker import CONCURRENCY
from tests.benchmarks.server import Answering, http

PAYLOADS = Path(__file__).parent.parent / "payloads"
WORKERS = 2
ROUNDS = 3
KIB, MIB = 1024, 1024 * 1024


def _rest_answer() -> bytes:
    """A balance whose equity is the moment at which it is sent."""
    return http(_body("htx-v5-live-rest.json", 0))


_documents: dict[str, dict[str, Any]] = {}
_others: set[int | None] = set()


def _body(name: str, version: int) -> bytes:
    document = _documents.get(name)
    if document is None:
        document = _documents[name] = json.loads((PAYLOADS / name).read_bytes())
    row = document["data"]["details"][0]
    document["ts"] = int(time.time() * 1000)
    if version:
        document["data"]["version"] = version
    row["equity"] = row["available"] = f"{time.monotonic():.6f}"
    return json.dumps(document).encode()


async def _talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)

    async def push() -> None:
        version, turn = 1, time.monotonic()
        while True:
            body = _body("htx-v5-live-stream.json", version)
            await socket.send_bytes(gzip.compress(body, compresslevel=1))
            version, turn = version + 1, turn + 1
            await asyncio.sleep(max(turn - time.monotonic(), 0))

    pushing: list[asyncio.Task[None]] = []
    async for frame in socket:
        op = json.loads(frame.data)["op"]
        await socket.send_json({"op": op, "err-code": 0, "ts": 1})
        if op == "sub":
            pushing.append(asyncio.create_task(push()))
    for task in pushing:
        task.cancel()
    return socket


def _serve(ready: Connection) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        rest = await loop.create_server(
            lambda: Answering(_rest_answer), "127.0.0.1", 0, backlog=4096
        )
        application = web.Application()
        application.router.add_get("/ws/v5/notification", _talk)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        ready.send((rest.sockets[0].getsockname()[1], runner.addresses[0][1]))
        await asyncio.Event().wait()

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run())


@contextmanager
def venue() -> Iterator[tuple[str, str]]:
    """A venue in its own process; gives the addresses of REST and of the push channel."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sending,), daemon=True)
    process.start()
    _others.add(process.pid)
    try:
        rest, stream = receiving.recv()
        yield f"http://127.0.0.1:{rest}", f"ws://127.0.0.1:{stream}"
    finally:
        process.terminate()
        process.join()


def keys_file(directory: Path, addresses: tuple[str, str], count: int) -> Path:
    """Write a keys file with that number of accounts, each of another user."""
    path = directory / f"{count}.toml"
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            file.write(
                f'[account-{n}]\nexchange = "htxfutures"\nuid = "{n}"\napiKey = "made-up-{n}"\n'
                f'secret = "made-up"\ntimeout = 60000\nurls.api.rest = "{addresses[0]}"\n'
                f'urls.api.stream = "{addresses[1]}"\n'
            )
    path.chmod(0o600)
    return path


def worker_processes() -> list[psutil.Process]:
    """The workers of the local cluster."""
    children = psutil.Process().children(recursive=True)
    started = [each for each in children if "--multiprocessing-fork" in each.cmdline()]
    return [each for each in started if each.pid not in _others]


def cpu(process: psutil.Process) -> float:
    """Seconds of processor time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def without_engine(count: int, url: str, ready: Connection, together: Barrier) -> None:
    """Read the same accounts without the engine, in one process."""

    async def run() -> list[float]:
        config = {"secret": "made-up", "timeout": 60_000, "urls": {"api": {"rest": url}}}
        exchanges: dict[int, AsyncHtxFutures] = {}
        places = asyncio.Semaphore(CONCURRENCY)

        async def read(n: int) -> None:
            async with places:
                if n not in exchanges:
                    exchanges[n] = AsyncHtxFutures({**config, "apiKey": f"m-{n}", "uid": str(n)})
                await exchanges[n].fetch_balance()

        seconds = []
        for _ in range(ROUNDS):
            together.wait()
            start = time.monotonic()
            await asyncio.gather(*map(read, range(count)))
            seconds.append(time.monotonic() - start)
        await asyncio.gather(*(exchange.close() for exchange in exchanges.values()))
        return seconds

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ready.send(asyncio.run(run()))


def baseline(count: int, url: str) -> list[float]:
    """The seconds that two processes take for the accounts, by round."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    together = context.Barrier(WORKERS)
    processes = [
        context.Process(target=without_engine, args=(count // WORKERS, url, sending, together))
        for _, sending in pipes
    ]
    for process in processes:
        process.start()
    results = [receiving.recv() for receiving, _ in pipes]
    for process in processes:
        process.join()
    return [max(each) for each in zip(*results, strict=True)]


async def once(directory: Path, addresses: tuple[str, str], count: int) -> None:
    """Read all accounts once, then again with the same exchanges."""
    alone = baseline(count, addresses[0])
    async with Fleet(keys_file(directory, addresses, count), workers=WORKERS) as fleet:
        before = [each.memory_info().rss for each in worker_processes()]
        seconds: list[float] = []
        for _ in range(ROUNDS):
            start, failed = time.monotonic(), 0
            async for _, balance in fleet.fetch_balances():
                failed += isinstance(balance, Exception)
            seconds.append(time.monotonic() - start)
            assert not failed, f"{failed} failed"
        after = [each.memory_info().rss for each in worker_processes()]
    for what, ours, theirs in zip(("first", "second", "third"), seconds, alone, strict=True):
        print(
            f"{count} accounts once, {what}: {ours:.1f} s, {count / ours:.0f}/s; without the "
            f"engine {theirs:.1f} s, {count / theirs:.0f}/s: {theirs / ours:.0%}"
        )
    _print_memory(before, after, count)


def _print_memory(before: list[int], after: list[int], count: int) -> None:
    grown = (sum(after) - sum(before)) / count
    idle = ", ".join(f"{each / MIB:.0f}" for each in before)
    full = ", ".join(f"{each / MIB:.0f}" for each in after)
    print(f"  workers: {idle} MiB idle, {full} MiB with accounts: {grown / KIB:.0f} KiB an account")


async def steady(
    directory: Path, addresses: tuple[str, str], count: int, every: float | None, seconds: float
) -> None:
    """Watch with one balance a second and account; then kill a worker."""
    async with Fleet(keys_file(directory, addresses, count), workers=WORKERS) as fleet:
        before = [each.memory_info().rss for each in worker_processes()]
        watch = fleet.watch_balances(every=every)
        fresh: dict[str, float] = {}

        async def gather(until: float | None = None, since: float = 0.0) -> list[float]:
            ages: list[float] = []
            async for name, balance in watch:
                assert isinstance(balance, dict), balance
                now = time.monotonic()
                sent = float(balance["USDT"]["total"])
                ages.append((now - sent) * 1000)
                fresh[name] = sent
                if until is not None and now > until:
                    break
                if until is None and len(fresh) == count and min(fresh.values()) > since:
                    break
            return ages

        start = time.monotonic()
        await gather()
        print(f"{count} {'polled' if every else 'watched'}: all arrived after "
              f"{time.monotonic() - start:.1f} s")  # fmt: skip
        await gather(time.monotonic() + 5)
        mine, theirs = psutil.Process(), worker_processes()
        first = cpu(mine), sum(map(cpu, theirs))
        start = time.monotonic()
        ages = await gather(start + seconds)
        took = time.monotonic() - start
        used = (cpu(mine) - first[0]) / took, (sum(map(cpu, theirs)) - first[1]) / took
        cuts = statistics.quantiles(ages, n=100)
        print(
            f"  {len(ages) / took:.0f} balances a second, age {statistics.median(ages):.0f} ms "
            f"(median), {cuts[98]:.0f} ms (99 %); workers {used[1]:.0%} of a core, client and "
            f"scheduler {used[0]:.0%}"
        )
        _print_memory(before, [each.memory_info().rss for each in theirs], count)
        theirs[0].kill()
        killed = time.monotonic()
        await gather(None, killed)
        print(f"  all fresh {time.monotonic() - killed:.1f} s after a worker was killed")
        await watch.aclose()


async def kills(directory: Path, addresses: tuple[str, str], count: int, times: int) -> None:
    """Read all accounts several times; kill a worker each time."""
    async with Fleet(keys_file(directory, addresses, count), workers=WORKERS) as fleet:
        lost = failed = 0
        start = time.monotonic()
        for turn in range(times):
            while len(fleet.workers) < WORKERS:  # noqa: ASYNC110 - a nanny ends with a starting worker
                await asyncio.sleep(0.1)
            seen: set[str] = set()
            async for name, balance in fleet.fetch_balances():
                assert name not in seen
                seen.add(name)
                failed += isinstance(balance, Exception)
                if len(seen) == count // 4:
                    alive = worker_processes()
                    alive[turn % len(alive)].kill()
            lost += count - len(seen)
        print(
            f"{times} kills, each while {count} accounts were read once: {lost} lost, {failed} "
            f"failed, {(time.monotonic() - start) / times:.1f} s a time"
        )


async def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["once", "polled", "watched", "kills"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--once", type=int, default=10_000)
    parser.add_argument("--accounts", type=int, default=2_000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {WORKERS} workers, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for what in arguments.what:
            with venue() as addresses:
                if what == "once":
                    await once(directory, addresses, arguments.once)
                elif what == "kills":
                    await kills(directory, addresses, 500, 20)
                else:
                    every = 1.0 if what == "polled" else None
                    await steady(directory, addresses, arguments.accounts, every, arguments.seconds)


if __name__ == "__main__":
    asyncio.run(main())
