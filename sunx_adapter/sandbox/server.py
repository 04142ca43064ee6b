"""The sandbox's port: aiohttp on a thread of its own, in front of the pure answers."""

import asyncio
import atexit
import gzip
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from aiohttp import web
from aiohttp.http import HttpProcessingError

from sunx_adapter.protocol.signing import SignatureMethod
from sunx_adapter.sandbox.accounts import SandboxAccount, checked_accounts
from sunx_adapter.sandbox.answers import Answer, Desk
from sunx_adapter.sandbox.checks import Request
from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS
from sunx_adapter.venue import VENUES

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_GRACE_SECONDS: Final = 0.5
"""How long an answer under way may take when the sandbox closes; idle connections get none."""

_WAIT_SECONDS: Final = 1.0
_BACKLOG: Final = 1024
_LOGGED_PATH_CHARACTERS: Final = 256


_logger = logging.getLogger(__name__)


def _is_own_fault(record: logging.LogRecord) -> bool:
    """Not a client's bad HTTP: its text quotes the request, with key and signature."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_logger.addFilter(_is_own_fault)


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One request that the sandbox answered; nothing of its query is kept.

    Attributes:
        time: by the sandbox's clock, seconds UTC.
        monotonic: by :func:`time.monotonic`, seconds, for measuring distances.
        method: ``"GET"``.
        path: without the query.
        uid: of the account that signed it, ``None`` if no signature was right.
        status: the HTTP status of the answer.
        code: the venue's code in the answer, ``"ok"``, or the status where a page was sent.
    """

    time: float
    monotonic: float
    method: str
    path: str
    uid: str | None
    status: int
    code: int | str


class Sandbox:
    """A local venue on a real TCP port, serving both path variants.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. All methods may be
    called from any thread, and any number of sandboxes may run at once.

    Args:
        accounts: whose keys are known; default: :data:`DEFAULT_ACCOUNTS`.
        host: the address to listen on.
        port: 0 takes a free one.
        clock: seconds UTC; timestamps, ``ts``, ``Date`` and the read limit go by it.
        kept_requests: how many of the latest requests :attr:`requests` keeps.

    Raises:
        ValueError: there is no account, or two have one name or one key.
    """

    def __init__(
        self,
        accounts: Iterable[SandboxAccount] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        kept_requests: int = 10_000,
    ) -> None:
        self._accounts = checked_accounts(DEFAULT_ACCOUNTS if accounts is None else accounts)
        self._host = host
        self._port = port
        self._clock = clock
        self._desk = Desk(self._accounts)
        self._log = _RequestLog(kept_requests)
        self._address: str | None = None
        self._server: _ServerThread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __repr__(self) -> str:
        where = self._address if self._server is not None else "not running"
        return f"Sandbox({where}, accounts={[account.name for account in self._accounts]!r})"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Listen. When this returns, requests are answered; a running sandbox stays as it is.

        Raises:
            OSError: the address cannot be listened on, as a rule because the port is in use.
        """
        with self._lock:
            if self._server is None:
                listener = _listen(self._host, self._port)
                address = _address(listener)
                self._server = _ServerThread(self._handle, listener)
                self._address = address
                self._closed.clear()
                # A sandbox that nobody closed must not keep the interpreter from ending.
                atexit.register(self.close)
        return self

    def close(self) -> None:
        """End every connection, the port and the thread. A second time does nothing."""
        with self._lock:
            if self._server is not None:
                atexit.unregister(self.close)
                self._server.stop()
                self._server = None
            self._closed.set()

    def wait(self) -> None:
        """Block until the sandbox is closed by another thread; Ctrl-C interrupts it.

        Raises:
            RuntimeError: it was never started.
        """
        self._running_address()
        # In steps, since on Windows nothing interrupts an endless wait.
        while not self._closed.wait(_WAIT_SECONDS):
            pass

    @property
    def accounts(self) -> tuple[SandboxAccount, ...]:
        """The accounts, in the order given."""
        return self._accounts

    @property
    def url(self) -> str:
        """Where REST is served, ``"http://127.0.0.1:PORT"``; still told after closing.

        Raises:
            RuntimeError: it was never started.
        """
        return f"http://{self._running_address()}"

    @property
    def stream_url(self) -> str:
        """Where the push channel is served, ``"ws://127.0.0.1:PORT"``.

        Raises:
            RuntimeError: it was never started.
        """
        return f"ws://{self._running_address()}"

    @property
    def requests(self) -> tuple[SandboxRequest, ...]:
        """The latest requests, oldest first. One is there before its answer is sent."""
        return self._log.latest()

    @property
    def request_count(self) -> int:
        """How many requests were answered in all."""
        return self._log.count

    def account(self, name: str) -> SandboxAccount:
        """The account of that name.

        Raises:
            ValueError: there is none; the text lists those that there are.
        """
        for account in self._accounts:
            if account.name == name:
                return account
        known = ", ".join(account.name for account in self._accounts)
        raise ValueError(f"the sandbox has no account {name!r}; it has: {known}")

    def config(
        self,
        venue: str,
        account: str | None = None,
        signature_method: SignatureMethod | None = None,
    ) -> dict[str, Any]:
        """A ready config for an exchange class, pointing it here.

        Args:
            venue: the exchange's id, ``"sunx"`` or ``"htxfutures"``.
            account: name of an account; default: the first.
            signature_method: default: the first that the account's key is enabled for.

        Raises:
            ValueError: no such venue or account, or a method that the key is not enabled for;
                the text lists what there is.
            RuntimeError: the sandbox was never started.
        """
        if venue not in VENUES:
            raise ValueError(f"no venue {venue!r}; there are: {', '.join(VENUES)}")
        chosen = self._accounts[0] if account is None else self.account(account)
        method = signature_method or chosen.signature_methods[0]
        if method not in chosen.signature_methods:
            enabled = ", ".join(chosen.signature_methods)
            raise ValueError(
                f"the key of account {chosen.name!r} is not enabled for {method!r}; it is for: "
                f"{enabled}"
            )
        credential = (
            {"secret": chosen.secret}
            if method == "HmacSHA256"
            else {"privateKey": chosen.private_key}
        )
        return {
            "apiKey": chosen.api_key,
            **credential,
            "uid": chosen.uid,
            "urls": {"api": {"rest": self.url, "stream": self.stream_url}},
        }

    def _running_address(self) -> str:
        if self._address is None:
            raise RuntimeError("the sandbox was never started: use `with Sandbox() as sandbox:`")
        return self._address

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        now = self._clock()
        path, _, query = request.raw_path.partition("?")
        incoming = Request(request.method, path, query, request.headers.get("Host", ""))
        answer = self._desk.answer(incoming, round(now * 1000))
        self._log.add(
            SandboxRequest(
                now,
                time.monotonic(),
                request.method,
                path[:_LOGGED_PATH_CHARACTERS],
                answer.uid,
                answer.status,
                answer.code,
            )
        )
        return _response(answer, now, gzipped=accepts_gzip(request.headers.get("Accept-Encoding")))


class _RequestLog:
    """The latest requests; written by the server's thread, read by any."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._latest: deque[SandboxRequest] = deque(maxlen=size)
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    def add(self, request: SandboxRequest) -> None:
        with self._lock:
            self._latest.append(request)
            self._count += 1

    def latest(self) -> tuple[SandboxRequest, ...]:
        with self._lock:
            return tuple(self._latest)


class _ServerThread:
    """An HTTP server on a listening socket, with its own thread and event loop.

    Returns from the constructor when it serves; whatever kept it from that is raised there.
    """

    def __init__(self, handler: Handler, listener: socket.socket) -> None:
        self._handler = handler
        self._listener = listener
        self._transports: WeakSet[asyncio.BaseTransport] = WeakSet()
        self._serving: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="sunx-adapter-sandbox", daemon=True)
        self._thread.start()
        try:
            self._loop, self._stopping = self._serving.result()
        except Exception:
            self._thread.join()
            raise

    def stop(self) -> None:
        """End it; returns when nothing of it is left."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._serving.done():
                raise
            # Whoever waits in the constructor raises it.
            self._serving.set_exception(error)
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        runner = web.ServerRunner(
            web.Server(self._answer, access_log=None, logger=_logger),
            shutdown_timeout=_GRACE_SECONDS,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, self._listener, backlog=_BACKLOG).start()
            self._serving.set_result((asyncio.get_running_loop(), stopping))
            await stopping.wait()
        finally:
            await runner.cleanup()
            await self._drop_connections()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        return await self._handler(request)

    async def _drop_connections(self) -> None:
        # An orderly close waits for clients to read what was sent; one that never reads would
        # keep its socket open.
        for transport in self._transports:
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        await asyncio.sleep(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(
            error.errno,
            f"the sandbox cannot listen on {host} port {port} ({reason}): choose another port, "
            f"or 0 for a free one",
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accepts_gzip(header: str | None) -> bool:
    """Whether an ``Accept-Encoding`` header takes gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, bool] = {}
    for item in (header or "").lower().split(","):
        coding, _, weight = item.partition(";")
        weights[coding.strip()] = weight.strip().rstrip("0") not in {"q=", "q=0."}
    return weights.get("gzip", weights.get("*", False))


def _response(answer: Answer, now: float, *, gzipped: bool) -> web.Response:
    headers = {
        **answer.headers,
        "Date": formatdate(now, usegmt=True),
        "Server": "sunx-adapter-sandbox",
        "Vary": "Accept-Encoding",
    }
    body = answer.body
    if gzipped:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, mtime=0)
    return web.Response(status=answer.status, body=body, headers=headers)
