"""Tests everything at once: ``python -m tests.chaos [--seconds 60] [--seed N]``.

All four classes read with several keys, in threads, tasks and forks, over plain HTTP and TLS, with
cancellations and closes in between. The venue repeats, delays, splits, drops and falsifies answers.
Each call must return its own key's balance or raise a ccxt exception, within its timeout plus a
quarter of a second. The venue must never see a 73rd read of a key in 3 s. Nothing may be left at
the end: no descriptor, task, thread, asyncio error or growing memory.
"""

import argparse
import asyncio
import faulthandler
import gc
import json
import logging
import os
import random
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import ccxt

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sunx
from tests.certificates import make_certificate
from tests.faulty import http
from tests.test_reliability import most_in_any_window

TIMEOUT_MS = 1500
LATE_SECONDS = 0.25
KEYS = 24
"""The first HOT keys are read up to the limit, the last FORKED only by children of forks."""

HOT, FORKED = 2, 4
THREADS, TASKS = 6, 12
MEMORY_GROWTH_MIB = 24
PAYLOAD = (Path(__file__).parent / "payloads" / "sunx-documented.json").read_bytes()
EMPTY = b'{"code":200,"data":{"details":[]}}'
ARRIVAL_ERROR_SECONDS = 0.02
"""The kernel's clock for this is coarse."""

SYNC: list[Any] = [Sunx, HtxFutures]
ASYNC: list[Any] = [AsyncSunx, AsyncHtxFutures]


def equity(key: int) -> str:
    """Return the equity of the key's account."""
    return f"{key + 1}.{key:018d}"


# -- the venue, in a separate process -------------------------------------------------------


class Venue:
    """Answers each request at random, often wrongly.

    Attributes:
        reads: by key, when each read arrived.
        played: how often each behaviour was played.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - nothing secret
        self.reads: defaultdict[int, list[float]] = defaultdict(list)
        self.played: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                query = parse_qs(request.split(b"?")[1].split(b" ")[0].decode())
                key = int(query["AccessKeyId"][0].rpartition("-")[2])
                self.reads[key].append(arrival(writer.get_extra_info("socket")))
                if not await self._answer(writer, key):
                    return
        except (OSError, asyncio.IncompleteReadError, IndexError):
            return
        finally:
            writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, key: int) -> bool:  # noqa: PLR0912
        right = http(PAYLOAD.replace(b"0.004015101942876636", equity(key).encode()))
        behaviour = self._chance.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0]
        self.played[behaviour] += 1
        match behaviour:
            case "twice":
                writer.write(right + right)
            case "tail":
                writer.write(right + http(EMPTY))
            case "line feeds":
                writer.write(right + b"\r\n")
            case "late tail":
                writer.write(right)
                # Same account only: HTTP/1.1 cannot distinguish it from the next answer.
                await asyncio.sleep(self._chance.uniform(0, 0.02))
                writer.write(right)
            case "pieces":
                for start in range(0, len(right), 97):
                    writer.write(right[start : start + 97])
                    await asyncio.sleep(0.001)
            case "slow":
                await asyncio.sleep(self._chance.uniform(0.05, 1))
                writer.write(right)
            case "silent":
                await asyncio.sleep(4)
                return False
            case "drop":
                return False
            case "cut":
                writer.write(right[: self._chance.randrange(len(right))])
                await writer.drain()
                return False
            case "odd status":
                writer.write(http(EMPTY, status="099 Odd") + right)
            case "interim":
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" + right)
            case "failure":
                writer.write(http(b'{"code":200,"success":false,"data":{"details":[]}}'))
            case "busy":
                writer.write(http(b'{"code":1004,"message":"busy"}'))
            case "garbage":
                writer.write(self._chance.randbytes(200))
            case "page":
                writer.write(http(b"<html>", status="502 Bad Gateway"))
            case "clock":
                ts = self._chance.choice([b"1e20", b"1e1000000", b"-5", b'"x"'])
                writer.write(http(b'{"code":12001,"message":"time","ts":' + ts + b"}"))
            case _:
                writer.write(right)
        await writer.drain()
        return True


BEHAVIOURS = {
    "right": 60, "twice": 3, "tail": 4, "line feeds": 3, "late tail": 3, "pieces": 3, "slow": 3,
    "silent": 0.5, "drop": 3, "cut": 3, "odd status": 2, "interim": 2, "failure": 1, "busy": 2,
    "garbage": 2, "page": 2, "clock": 1,
}  # fmt: skip


async def serve(seed: int, certificate: Path) -> None:
    """Run the venue, plain and over TLS, until standard input ends; then print a report."""
    venue = Venue(seed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    servers = [
        await asyncio.start_server(venue.serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
        for tls in (None, context)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    window = 3 - ARRIVAL_ERROR_SECONDS
    most = {key: most_in_any_window(moments, window) for key, moments in venue.reads.items()}
    counted = {key: len(moments) for key, moments in venue.reads.items()}
    print(json.dumps({"most": most, "reads": counted, "played": venue.played}), flush=True)


def arrival(connection: socket.socket) -> float:
    """Return when the last request arrived, by Linux's tcp_info.

    The venue reads it later if the machine is busy, or while it still plays an earlier behaviour.
    """
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
    milliseconds_ago: int = struct.unpack_from("I", information, 52)[0]  # tcpi_last_data_recv
    return time.monotonic() - milliseconds_ago / 1000


# -- the readers ----------------------------------------------------------------------------


class Readers:
    """Threads, tasks and children of forks that read until the end time."""

    def __init__(self, seed: int, seconds: float, ports: list[int], cafile: Path) -> None:
        self._seed = seed
        self._end = time.monotonic() + seconds
        self._ports = ports
        self._cafile = str(cafile)
        self.counted: Counter[str] = Counter()
        self.faults: list[str] = []

    def config(self, key: int, **more: Any) -> dict[str, Any]:
        """Return the configuration of a key; odd keys are read over TLS."""
        scheme = "https" if key % 2 else "http"
        return {
            "apiKey": f"made-up-chaos-key-{key}",
            "secret": "made-up-secret",
            "number": str,
            "timeout": TIMEOUT_MS,
            "cafile": self._cafile,
            "urls": {"api": {"rest": f"{scheme}://127.0.0.1:{self._ports[key % 2]}"}},
            **more,
        }

    def _running(self) -> bool:
        return time.monotonic() < self._end and not self.faults

    def _check(self, key: int, began: float, outcome: object) -> None:
        took = time.monotonic() - began
        if took > TIMEOUT_MS / 1000 + LATE_SECONDS:
            self.faults.append(f"key {key}: a call took {took:.2f} s: {outcome!r:.200}")
        if isinstance(outcome, dict):
            totals = outcome["total"]
            if totals.keys() != {"USDT"} or float(totals["USDT"]) != float(equity(key)):
                self.faults.append(f"key {key}: a wrong balance: {totals}")
            self.counted["balance"] += 1
        elif isinstance(outcome, ccxt.BaseError):
            self.counted[type(outcome).__name__] += 1
            if "unexpected" in str(outcome):
                self.faults.append(f"key {key}: {outcome}")
        else:
            self.faults.append(f"key {key}: {outcome!r:.300}")

    def read_in_thread(self, number: int, shared: dict[int, Any]) -> None:
        """Read with exchanges shared by threads, and sometimes with a separate one."""
        chance = random.Random(self._seed * 1000 + number)  # noqa: S311
        while self._running():
            hot = number % 3 == 0
            key = chance.randrange(HOT) if hot else chance.randrange(HOT, KEYS - FORKED)
            began, own = time.monotonic(), None
            exchange = shared[key]
            if chance.random() < 0.03:
                own = exchange = SYNC[key // 2 % 2](self.config(key))
            try:
                outcome: object = exchange.fetch_balance()
            except BaseException as error:  # noqa: BLE001 - every exception is checked
                outcome = error
            self._check(key, began, outcome)
            if own is not None:
                own.close()
            elif chance.random() < 0.02:
                exchange.close()
                exchange.__enter__()

    def fork(self, exchanges: dict[int, Any]) -> None:
        """Fork while the others read; the child reads with an inherited exchange."""
        chance = random.Random(self._seed + 7)  # noqa: S311
        while self._running():
            key = chance.randrange(KEYS - FORKED, KEYS)
            threading.Event().wait(chance.uniform(0.02, 0.2))
            child = os.fork()
            if child == 0:
                # A child that hangs is a fault, too. It ends with its traceback.
                faulthandler.register(signal.SIGALRM, chain=True)
                signal.alarm(10)
                before = len(self.faults)
                try:
                    began = time.monotonic()
                    try:
                        outcome: object = exchanges[key].fetch_balance()
                    except ccxt.BaseError as error:
                        outcome = error
                    self._check(key, began, outcome)
                    os._exit(len(self.faults) - before)
                except BaseException:  # noqa: BLE001 - the child must not continue as the parent
                    os._exit(99)
            _, status = os.waitpid(child, 0)
            self.counted["fork"] += 1
            if status:
                self.faults.append(
                    f"the child of a fork failed: {os.waitstatus_to_exitcode(status)}"
                )

    async def read_in_tasks(self) -> None:
        """Read in tasks, cancel many calls, and close exchanges while others use them."""
        loop_errors: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: loop_errors.append(context))
        keys = range(HOT, KEYS - FORKED)
        exchanges = {key: ASYNC[key // 2 % 2](self.config(key)) for key in keys}
        chance = random.Random(self._seed + 3)  # noqa: S311

        async def reader() -> None:
            while self._running():
                key = chance.choice(keys)
                began = time.monotonic()
                cancel_after = chance.choice([None, None, 0.002, 0.01, 0.05])
                try:
                    outcome: object = await asyncio.wait_for(
                        exchanges[key].fetch_balance(), cancel_after
                    )
                except TimeoutError:
                    self.counted["cut short"] += 1
                    continue
                except BaseException as error:  # noqa: BLE001 - every exception is checked
                    outcome = error
                self._check(key, began, outcome)
                if chance.random() < 0.02:
                    await exchanges[key].close()
                    exchanges[key].open()

        await asyncio.gather(*(reader() for _ in range(TASKS)))
        for exchange in exchanges.values():
            await exchange.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0.1)
        self.faults += [f"asyncio reported: {each}" for each in loop_errors]
        self.faults += [f"a task is left: {task}" for task in left if not task.done()]


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def read(seed: int, seconds: float, ports: list[int], cafile: Path) -> Readers:
    """Run all readers at once; return them with their findings."""
    readers = Readers(seed, seconds, ports, cafile)
    files, threads_before = _open_files(), threading.active_count()
    shared = {key: SYNC[key // 2 % 2](readers.config(key)) for key in range(KEYS)}
    threads = [
        threading.Thread(target=readers.read_in_thread, args=(number, shared))
        for number in range(THREADS)
    ]
    threads.append(threading.Thread(target=readers.fork, args=(shared,)))
    figures: list[float] = []

    def watch() -> None:
        while any(thread.is_alive() for thread in threads):
            figures.append(_memory_mib())
            threading.Event().wait(0.5)

    watching = threading.Thread(target=watch)
    for thread in threads:
        thread.start()
    watching.start()
    asyncio.run(readers.read_in_tasks())
    for thread in (*threads, watching):
        thread.join()
    for exchange in shared.values():
        exchange.close()
    del exchange
    shared.clear()
    gc.collect()
    # Wait for connections that were abandoned while being opened.
    until = time.monotonic() + TIMEOUT_MS / 1000 + 1
    while threading.active_count() > threads_before and time.monotonic() < until:
        threading.Event().wait(0.05)
    if threading.active_count() > threads_before:
        readers.faults.append(f"threads are left: {threading.enumerate()}")
    if (more := _open_files() - files) > 0:
        readers.faults.append(f"{more} descriptors are left")
    half = figures[len(figures) // 2 :]
    if half and half[-1] - half[0] > MEMORY_GROWTH_MIB:
        readers.faults.append(f"memory grew by {half[-1] - half[0]:.1f} MiB")
    print(f"memory over the second half {half[-1] - half[0]:+.1f} MiB" if half else "")
    return readers


def chaos(seconds: float, seed: int) -> list[str]:
    """Start the venue and the readers; return the faults found."""
    logging.getLogger("sunx_adapter").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        file = make_certificate(Path(directory))
        command = [sys.executable, "-m", "tests.chaos", "--serve", str(file), "--seed", str(seed)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # disconnected clients are expected
            text=True,
        ) as venue:
            assert venue.stdout is not None
            assert venue.stdin is not None
            ports = json.loads(venue.stdout.readline())
            readers = read(seed, seconds, ports, file)
            venue.stdin.close()
            report = json.loads(venue.stdout.readline())
    faults = readers.faults
    faults += [f"key {k}: {n} reads in 3 s" for k, n in report["most"].items() if n > 72]
    print("calls:", dict(readers.counted.most_common()))
    print("played:", report["played"])
    print("reads:", sum(report["reads"].values()), "most in 3 s:", max(report["most"].values()))
    return faults


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.seed, options.serve))
        return
    print(f"seed {options.seed}")
    faults = chaos(options.seconds, options.seed)
    for fault in faults[:20]:
        print("FAULT", fault)
    print("nothing wrong" if not faults else f"{len(faults)} faults; the seed is {options.seed}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
