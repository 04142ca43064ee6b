"""A minimal HTTP server for both adapters, in a separate process.

It answers the balance paths from memory and everything else with an empty success, so that the
client is what is measured.
"""

import asyncio
import json
import multiprocessing
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import KEYS

LIVE = Path(__file__).parent.parent / "payloads" / "htx-v5-live-rest.json"


def balance_body(currencies: int) -> bytes:
    """Return an answer as seen live, with this many currencies."""
    answer: dict[str, Any] = json.loads(LIVE.read_text("utf-8"))
    row = answer["data"]["details"][0]
    codes = ["USDT", "BTC", *(f"C{number}" for number in range(currencies - 2))]
    answer["data"]["details"] = [{**row, "currency": code} for code in codes[:currencies]]
    return json.dumps(answer, separators=(",", ":")).encode()


def http(body: bytes) -> bytes:
    """A successful answer with that body."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Answering(asyncio.Protocol):
    """Answers every request, whatever it asks for, with what ``answer()`` returns."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pending = b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._pending += data
        while b"\r\n\r\n" in self._pending:
            _, self._pending = self._pending.split(b"\r\n\r\n", 1)
            self._transport.write(self._answer())


def _serve(ready: Connection, body: bytes, certificate: Path | None) -> None:
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    async def run() -> None:
        answer = http(body)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Answering(lambda: answer), "127.0.0.1", 0, ssl=context, backlog=2048
        )
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def bare_server(currencies: int, certificate: Path | None = None) -> Iterator[str]:
    """Run a server in a separate process, over TLS if a certificate is given; yield its address."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    arguments = (sending, balance_body(currencies), certificate)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{receiving.recv()}"
    finally:
        process.terminate()
        process.join()


def our_config(url: str) -> dict[str, Any]:
    """Return our configuration for the server, without the read limit."""
    return {**KEYS, "enableRateLimit": False, "urls": {"api": {"rest": url}}}


def ccxt_config(url: str) -> dict[str, Any]:
    """Return ccxt's configuration; with a market given, it needs only one request per balance."""
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
