"""Benchmarks of whole calls over HTTP, against a minimal loopback server."""

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import ccxt
import ccxt.async_support
import orjson

from sunx_adapter import AsyncHtxFutures, HtxFutures
from tests.benchmarks.measure import Measured, alternate, alternate_async
from tests.benchmarks.server import bare_server, ccxt_config, our_config
from tests.certificates import make_certificate

ASYNC_GOALS = {(1, 2): 0.65, (1, 100): 0.43, (32, 2): 0.45, (32, 100): 0.38}
SYNC_GOALS = {2: 0.42, 100: 0.34}
BARE_GOAL = 1.35


def measure(rounds: int, calls: int) -> Iterator[Measured]:
    """Yield each row as soon as it is measured."""
    for currencies in (2, 100):
        for at_once in (1, 32):
            yield asyncio.run(_async(currencies, at_once, rounds, calls))
    for currencies in (2, 100):
        yield _sync(currencies, rounds, calls)
    yield asyncio.run(_bare(rounds, calls))
    with TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory))
        for at_once in (1, 32):
            yield asyncio.run(_async(2, at_once, rounds, calls, certificate))
        yield _sync(2, rounds, calls, certificate)


def _sync(currencies: int, rounds: int, calls: int, certificate: Path | None = None) -> Measured:
    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls * 1e6

    with (
        bare_server(currencies, certificate) as url,
        HtxFutures({**our_config(url), **_tls_settings(certificate)}) as ours,
    ):
        peer = ccxt.htx(ccxt_config(url))
        # Certificates are verified once per connection, which is not measured here.
        peer.validateServerSsl = certificate is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair = alternate(
                rounds, lambda: timed(ours.fetch_balance), lambda: timed(peer.fetch_balance)
            )
    what = f"sync call, {currencies} currencies{_suffix(certificate)}"
    return Measured(what, "ccxt htx", *pair, goal=SYNC_GOALS[currencies])


def _tls_settings(certificate: Path | None) -> dict[str, str]:
    return {"cafile": str(certificate)} if certificate else {}


def _suffix(certificate: Path | None) -> str:
    return ", TLS" if certificate else ""


async def _timed(call: Callable[[], Awaitable[Any]], calls: int, at_once: int) -> float:
    async def work() -> None:
        for _ in range(calls // at_once):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return (time.perf_counter() - start) / (calls // at_once * at_once) * 1e6


async def _async(
    currencies: int, at_once: int, rounds: int, calls: int, certificate: Path | None = None
) -> Measured:
    with bare_server(currencies, certificate) as url:
        peer = ccxt.async_support.htx(ccxt_config(url))
        peer.cafile = str(certificate or peer.cafile)
        async with AsyncHtxFutures({**our_config(url), **_tls_settings(certificate)}) as ours:
            pair = await alternate_async(
                rounds,
                lambda: _timed(ours.fetch_balance, calls, at_once),
                lambda: _timed(peer.fetch_balance, calls, at_once),
            )
        await peer.close()
    what = f"async call, {at_once} at once, {currencies} currencies{_suffix(certificate)}"
    return Measured(what, "ccxt htx", *pair, goal=ASYNC_GOALS[at_once, currencies])


async def _bare(rounds: int, calls: int) -> Measured:
    with bare_server(2) as url:
        async with AsyncHtxFutures(our_config(url)) as ours, aiohttp.ClientSession() as session:
            # As long as a signed address.
            address = ours.sign("v5/account/balance", "private", "GET", {})["url"]

            async def bare() -> object:
                async with session.get(address) as response:
                    return orjson.loads(await response.read())

            pair = await alternate_async(
                rounds,
                lambda: _timed(ours.fetch_balance, calls, 32),
                lambda: _timed(bare, calls, 32),
            )
    what = "async call, 32 at once, 2 currencies"
    return Measured(what, "bare aiohttp GET + JSON", *pair, goal=BARE_GOAL)
