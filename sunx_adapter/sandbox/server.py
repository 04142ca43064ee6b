"""The sandbox's port: aiohttp on a thread of its own, in front of the pure answers."""

import asyncio
import atexit
import gzip
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from aiohttp import web
from aiohttp.http import HttpProcessingError

from sunx_adapter.protocol.signing import SignatureMethod
from sunx_adapter.sandbox.accounts import SandboxAccount, checked_accounts
from sunx_adapter.sandbox.answers import SUCCESS_STATUS, Answer, Desk
from sunx_adapter.sandbox.checks import Request
from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS
from sunx_adapter.sandbox.fault_plan import FaultPlan
from sunx_adapter.sandbox.faults import Fault, FaultKind
from sunx_adapter.sandbox.holdings import Holding, balance_data
from sunx_adapter.sandbox.life import Life, LifeThread, lives
from sunx_adapter.sandbox.port import Port, address, listen
from sunx_adapter.sandbox.push import HEARTBEAT_SECONDS, STREAM_VARIANTS, PushChannel
from sunx_adapter.sandbox.spoiling import spoiled
from sunx_adapter.sandbox.wire import UNANSWERED, Wire, deliver
from sunx_adapter.venue import VENUES

Handler = Callable[[web.BaseRequest, Wire], Awaitable[web.StreamResponse]]

_GRACE_SECONDS: Final = 0.5
"""How long an answer under way may take when the sandbox closes; idle connections get none."""

_WAIT_SECONDS: Final = 1.0
_LOGGED_PATH_CHARACTERS: Final = 256


_SWITCHING: Final = Answer(HTTPStatus.SWITCHING_PROTOCOLS, b"", SUCCESS_STATUS)

_logger = logging.getLogger(__name__)


def _is_own_fault(record: logging.LogRecord) -> bool:
    """Not a client's bad HTTP: its text quotes the request, with key and signature."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_logger.addFilter(_is_own_fault)


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One request that came to the sandbox; nothing of its query is kept.

    Attributes:
        time: by the sandbox's clock, seconds UTC; a ``clock`` fault does not change it.
        monotonic: by :func:`time.monotonic`, seconds, for measuring distances.
        method: ``"GET"``.
        path: without the query.
        uid: of the account that signed it, ``None`` if no signature was right.
        status: the HTTP status of the answer; ``None`` if a fault let none be sent.
        code: the venue's code in the answer, ``"ok"``, or the status where a page was sent;
            ``None`` as above.
        fault: what went wrong on purpose; ``None`` if nothing did, also where a fault was drawn
            that this request could not have.
    """

    time: float
    monotonic: float
    method: str
    path: str
    uid: str | None
    status: int | None
    code: int | str | None
    fault: Fault | None = None


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
        faults: what goes wrong, :class:`Fault` or its text, ``"reset@0.2"``; see
            :func:`~sunx_adapter.sandbox.faults.fault_kinds`.
        seed: of the draws between faults: the same seed gives the same ones to the same order of
            requests. ``None`` draws differently each time. The same holds for ``life``.
        heartbeat: seconds between two pings of the push channel.
        life: seconds between two changes of all accounts that are normal and have something, by
            a random walk; ``None`` changes nothing. For changes of one's own see :meth:`update`.

    A request that is right counts against the read limit, whatever a fault makes of its answer.

    Raises:
        ValueError: there is no account, or two have one name or one key; a fault cannot be
            (:class:`FaultError`), or the probabilities of faults add up to more than 1.
    """

    def __init__(
        self,
        accounts: Iterable[SandboxAccount] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        kept_requests: int = 10_000,
        faults: Iterable[Fault | str] = (),
        seed: int | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        life: float | None = None,
    ) -> None:
        self._accounts = checked_accounts(DEFAULT_ACCOUNTS if accounts is None else accounts)
        self._host = host
        self._port = port
        self._clock = clock
        self._desk = Desk(self._accounts)
        self._plan = FaultPlan(faults, seed)
        self._push = PushChannel(
            lambda: self._accounts, clock=clock, plan=self._plan, heartbeat=heartbeat
        )
        self._life_seconds, self._seed = life, seed
        self._life: LifeThread | None = None
        self._changing = threading.Lock()
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
                listener = listen(self._host, self._port)
                listening_on = address(listener)
                self._server = _ServerThread(self._handle, listener)
                self._address = listening_on
                self._closed.clear()
                # A sandbox that nobody closed must not keep the interpreter from ending.
                atexit.register(self.close)
                self._begin_life()
        return self

    def close(self) -> None:
        """End every connection, the port and the thread. A second time does nothing."""
        with self._lock:
            if self._server is not None:
                atexit.unregister(self.close)
                if self._life is not None:
                    self._life.stop()
                    self._life = None
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
        """How many requests came in all."""
        return self._log.count

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The standing faults, without those scheduled."""
        return self._plan.standing

    @property
    def scheduled(self) -> tuple[Fault, ...]:
        """The steps of the schedule that no request has used up yet."""
        return self._plan.steps

    def set_faults(self, faults: Iterable[Fault | str], seed: int | None = None) -> None:
        """Put other standing faults in place, for the requests that come from now on.

        Args:
            faults: as for the constructor.
            seed: starts the draws anew.

        Raises:
            FaultError: a fault cannot be, or probabilities add up to more than 1; then nothing
                changes.
        """
        self._plan.replace(faults, seed)

    def schedule(self, steps: Iterable[Fault | str]) -> None:
        """Add steps to the schedule: each request uses up the first that is for its path.

        ``"ok"`` is a right answer. When no step is left, the standing faults count again.

        Args:
            steps: faults without a probability, or their texts: ``["reset", "ok", "code=1004"]``.

        Raises:
            FaultError: a step cannot be; then none is added.
        """
        self._plan.schedule(steps)

    def clear_faults(self) -> None:
        """End all faults, standing and scheduled, for the requests that come from now on."""
        self._plan.clear()
        with self._lock:
            if self._server is not None:
                self._server.take_connections()

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

    def update(
        self,
        account: str,
        balance: Mapping[str, Any] | Iterable[Holding],
        *,
        state: str = "normal",
    ) -> SandboxAccount:
        """Change an account: reads give the new balance from now on, and it is pushed.

        Args:
            account: its name.
            balance: what it has, or ``data`` of the balance answer as it is.
            state: as the venue writes it; not for a balance as it is.

        Raises:
            ValueError: there is no such account.
        """
        if not isinstance(balance, Mapping):
            now = round(self._clock() * 1000)
            balance = balance_data(balance, state=state, updated_time=now)
        with self._changing:
            changed = replace(self.account(account), balance=balance)
            self._accounts = tuple(
                changed if other.name == account else other for other in self._accounts
            )
            self._desk.put(changed)
            self._push.changed(changed)
        return changed

    def _begin_life(self) -> None:
        if self._life_seconds is not None:
            self._life = LifeThread(
                [account.name for account in self._accounts if lives(account.balance)],
                lambda name: self.account(name).balance,
                self._live,
                seconds=self._life_seconds,
                seed=self._seed,
            )

    def _live(self, name: str, moment: Life) -> None:
        self.update(name, moment.holdings, state=moment.state)

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

    async def _handle(self, request: web.BaseRequest, wire: Wire) -> web.StreamResponse:
        now = self._clock()
        path, _, query = request.raw_path.partition("?")
        incoming = Request(request.method, path, query, request.headers.get("Host", ""))
        draw = self._plan.draw(path)
        if _is_pushed(draw.fault) and path in STREAM_VARIANTS and "Upgrade" in request.headers:
            self._log.add(_logged(incoming, now, _SWITCHING, None))
            return await self._push.talk(request, wire.ending)
        milliseconds, ahead_ms = round(now * 1000), round(draw.clock_seconds * 1000)
        answer = self._desk.answer(incoming, milliseconds, ahead_ms=ahead_ms)
        fault = draw.clock
        if draw.fault is not None:
            changed = spoiled(answer, draw.fault, incoming, milliseconds + ahead_ms)
            if changed is not None:
                answer, fault = changed, draw.fault
        self._log.add(_logged(incoming, now, answer, fault))
        response = _response(
            answer,
            now + draw.clock_seconds,
            gzipped=accepts_gzip(request.headers.get("Accept-Encoding")),
        )
        return await deliver(response, fault, wire)


def _is_pushed(fault: Fault | None) -> bool:
    """Whether a push connection may be opened: the channel itself tells of these faults."""
    return fault is None or fault.kind in {FaultKind.CLOCK, FaultKind.MAINTENANCE}


def _logged(request: Request, now: float, answer: Answer, fault: Fault | None) -> SandboxRequest:
    answered = fault is None or fault.kind not in UNANSWERED
    return SandboxRequest(
        now,
        time.monotonic(),
        request.method,
        request.path[:_LOGGED_PATH_CHARACTERS],
        answer.uid,
        answer.status if answered else None,
        answer.code if answered else None,
        fault,
    )


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
        self._serving: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="sunx-adapter-sandbox", daemon=True)
        self._thread.start()
        try:
            self._loop = self._serving.result()
        except Exception:
            self._thread.join()
            raise

    def stop(self) -> None:
        """End it; returns when nothing of it is left."""
        self._loop.call_soon_threadsafe(self._wire.ending.set)
        self._thread.join()

    def take_connections(self) -> None:
        """End their refusal; when this returns, they are taken."""
        asyncio.run_coroutine_threadsafe(self._wire.port.open(), self._loop).result()

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
        runner = web.ServerRunner(
            # Whatever waits for a client that has gone, ends.
            web.Server(self._answer, handler_cancellation=True, access_log=None, logger=_logger),
            shutdown_timeout=_GRACE_SECONDS,
        )
        await runner.setup()
        self._wire = wire = Wire(Port(runner, self._listener), asyncio.Event())
        try:
            await wire.port.open()
            self._serving.set_result(asyncio.get_running_loop())
            await wire.ending.wait()
        finally:
            await wire.port.close()
            await runner.cleanup()
            await self._drop_connections()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        return await self._handler(request, self._wire)

    async def _drop_connections(self) -> None:
        # An orderly close waits for clients to read what was sent; one that never reads would
        # keep its socket open.
        for transport in self._transports:
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        await asyncio.sleep(0)


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
    if gzipped and body and "Content-Encoding" not in headers:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, mtime=0)
    return web.Response(status=answer.status, body=body, headers=headers)
