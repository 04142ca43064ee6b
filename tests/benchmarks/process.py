"""Benchmarks of whole processes: discovery, start to first balance, a thousand accounts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.measure import KEYS, Measured, alternate
from tests.benchmarks.server import bare_server, ccxt_config, our_config
from tests.certificates import make_certificate

DISCOVER = """
import pluggy, types
plugins = pluggy.PluginManager("multi_exchange")
class Hooks:
    @pluggy.HookspecMarker("multi_exchange")
    def exchange_offers(self): pass
plugins.add_hookspecs(Hooks)
plugins.load_setuptools_entrypoints({group!r})
plugins.register(types.ModuleType("empty"))
plugins.hook.exchange_offers()
import sys
assert "ccxt" not in sys.modules
"""

OUR_SCRIPT = """
from sunx_adapter import HtxFutures
HtxFutures({"apiKey": "made-up", "secret": "made-up"})
"""

CCXT_SCRIPT = """
import ccxt
ccxt.htx({"apiKey": "made-up", "secret": "made-up"})
"""

CCXT_FIRST = """
import json, sys, ccxt
config = json.loads(sys.argv[1])
print(json.dumps(ccxt.htx(config).fetch_balance()))
"""

THOUSAND = """
import asyncio, json, resource, sys
kind, config, accounts, seconds = sys.argv[1], json.loads(sys.argv[2]), 1000, 10
config["timeout"] = 60_000

def make():
    if kind == "ours":
        from sunx_adapter import AsyncHtxFutures
        return [AsyncHtxFutures({**config, "apiKey": f"{config['apiKey']}-{n}"})
                for n in range(accounts)]
    import ccxt.async_support
    return [ccxt.async_support.htx(config) for _ in range(accounts)]

async def main():
    loop = asyncio.get_running_loop()
    made = make()
    # Fill connections and caches first: only the steady state is measured.
    for some in range(0, accounts, 50):
        await asyncio.gather(*(each.fetch_balance() for each in made[some : some + 50]))
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = loop.time()
    async def poll(exchange, phase):
        for second in range(seconds):
            await asyncio.sleep(max(0, start + second + phase - loop.time()))
            await exchange.fetch_balance()
    await asyncio.gather(*(poll(e, n / accounts) for n, e in enumerate(made)))
    await asyncio.sleep(max(0, start + seconds - loop.time()))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([cpu / (loop.time() - start), after.ru_maxrss / 1024]), flush=True)
    await asyncio.gather(*(exchange.close() for exchange in reversed(made)))

asyncio.run(main())
"""


def _seconds(command: list[str], **environ: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environ)
    return time.perf_counter() - start


def measure(rounds: int) -> Iterator[Measured]:
    """Yield each row as soon as it is measured."""
    yield _discovery(rounds)
    yield _script(rounds)
    with bare_server(2) as url:
        yield _first_balance(url, rounds)
    yield from _thousand_accounts(None)
    with TemporaryDirectory() as directory:
        yield from _thousand_accounts(make_certificate(Path(directory)))


def _discovery(rounds: int) -> Measured:
    def milliseconds(group: str) -> float:
        return _seconds([sys.executable, "-c", DISCOVER.format(group=group)]) * 1000

    pair = alternate(rounds, lambda: milliseconds("multi_exchange"), lambda: milliseconds("none"))
    what = "discovery in a fresh process"
    return Measured(what, "an empty plugin", *pair, goal=15, unit="ms", difference=True)


def _script(rounds: int) -> Measured:
    def milliseconds(code: str) -> float:
        return _seconds([sys.executable, "-c", code]) * 1000

    pair = alternate(rounds, lambda: milliseconds(OUR_SCRIPT), lambda: milliseconds(CCXT_SCRIPT))
    return Measured("script that makes an exchange", "with ccxt htx", *pair, goal=1.1, unit="ms")


def _first_balance(url: str, rounds: int) -> Measured:
    ours = [sys.executable, "-m", "sunx_adapter", "balance", "-e", "htxfutures", "--json"]
    environ = {
        "HTXFUTURES_REST_URL": url,
        "HTXFUTURES_API_KEY": KEYS["apiKey"],
        "HTXFUTURES_API_SECRET": KEYS["secret"],
    }
    peer = [sys.executable, "-c", CCXT_FIRST, json.dumps(ccxt_config(url))]
    pair = alternate(
        rounds, lambda: _seconds(ours, **environ) * 1000, lambda: _seconds(peer) * 1000
    )
    return Measured("process start to first balance", "script with ccxt", *pair, 1.4, "ms")


def _thousand_accounts(certificate: Path | None) -> Iterator[Measured]:
    def run(kind: str, config: dict[str, object]) -> list[float]:
        command = [sys.executable, "-c", THOUSAND, kind, json.dumps(config)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        cpu_and_memory: list[float] = json.loads(done.stdout.splitlines()[-1])
        return cpu_and_memory

    trusting = {"cafile": str(certificate)} if certificate else {}
    with bare_server(2, certificate) as url:
        ours = run("ours", {**our_config(url), **trusting})
        theirs = run("ccxt", {**ccxt_config(url), **trusting})
    what = f"1,000 accounts at 1 Hz{', TLS' if certificate else ''}"
    yield Measured(f"{what}: CPU", "1,000 ccxt htx", ours[0] * 100, theirs[0] * 100, 0.55, "%")
    if certificate:
        yield Measured(f"{what}: memory", "1,000 ccxt htx", ours[1], theirs[1], 1.0, "MB")
    else:
        yield Measured(f"{what}: memory", "150 MB", ours[1], 150, 1.0, "MB")
