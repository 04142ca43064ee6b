"""The sandbox: accounts, answers, faults and the push channel on a real port."""

import atexit
import gzip
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Self

from aiohttp import web

from sunx_adapter.sandbox.accounts import AccountBook, SandboxAccount, SignatureMethod
from sunx_adapter.sandbox.answers import HttpRequest, SandboxAnswer, page
from sunx_adapter.sandbox.balances import Holding, RandomWalk, balance_data
from sunx_adapter.sandbox.delivery import Delivery, http_head, whole
from sunx_adapter.sandbox.faults import Fault, FaultPlan
from sunx_adapter.sandbox.http_server import HttpServer, LoopThread, listen
from sunx_adapter.sandbox.push import HEARTBEAT_SECONDS, STREAM_VARIANTS, PushChannel
from sunx_adapter.sandbox.responder import Responder
from sunx_adapter.text import printable
from sunx_adapter.venue import VENUES

_WAIT_SECONDS: Final = 0.1
_LOGGED_PATH_CHARACTERS: Final = 256

_logger = logging.getLogger("sunx_adapter.sandbox")


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One received request. Its query is not kept.

    Attributes:
        time: by the sandbox's clock, seconds UTC; ``clock`` faults do not change it.
        monotonic: by :func:`time.monotonic`, seconds, to measure intervals.
        method: ``"GET"``.
        path: without the query.
        uid: user id of the account that signed it; ``None`` without a valid signature.
        status: the HTTP status of the answer; ``None`` if a fault prevented an answer.
        code: the venue's code in the answer, ``"ok"``, or the HTTP status; ``None`` as above.
        fault: the simulated fault; ``None`` if none applied to this request.
    """

    time: float
    monotonic: float
    method: str
    path: str
    uid: str | None
    status: int | None
    code: int | str | None
    fault: Fault | None = None

    def __str__(self) -> str:
        fault = f" (fault: {self.fault})" if self.fault else ""
        outcome = f"status {self.status}, code {self.code}, uid {self.uid}"
        return f"{self.method} {self.path}: {outcome}{fault}"


class Sandbox(FaultPlan):
    """A local venue on a real TCP port, serving both path variants.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. All methods are
    thread-safe. Any number of sandboxes can run at once. Every valid request counts against the
    read limit, even if a fault changes its answer.

    Args:
        accounts: the accounts; default: :data:`DEFAULT_ACCOUNTS`. A number N makes the accounts
            ``account-1`` to ``account-N``; ``account-7`` has 1007 USDT in cash.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        clock: seconds UTC; used for timestamps, ``ts``, ``Date`` and the read limit.
        kept_requests: how many requests :attr:`requests` keeps.
        faults: the faults to simulate, each a :class:`Fault` or its text, ``"reset@0.2"``; see
            :func:`~sunx_adapter.sandbox.faults.fault_kinds`.
        seed: for the random numbers of ``faults`` and ``life``: the same seed gives the same
            results for the same sequence of requests. ``None`` gives different ones each time.
        heartbeat: seconds between two pings of the push channel.
        life: lets accounts change at random: seconds between two changes of a watched account, and
            the minimum time between two changes of a read one. Only accounts in the normal state
            with at least one currency change. ``None`` changes nothing.

    Raises:
        ValueError: there is no account, two share a name or an API key, a fault is invalid
            (:class:`FaultError`), or the probabilities of faults add up to more than 1.
    """

    def __init__(
        self,
        accounts: Iterable[SandboxAccount] | int | None = None,
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
        super().__init__(faults, seed)
        self._host, self._port, self._clock = host, port, clock
        walk = None if life is None else RandomWalk(life, seed, clock)
        self._accounts = AccountBook(accounts, walk)
        self._responder = Responder(self._accounts)
        self._push = PushChannel(self._accounts, self, clock, heartbeat)
        self._log: deque[SandboxRequest] = deque(maxlen=kept_requests)
        self._request_count = 0
        self._log_lock = threading.Lock()
        self._url: str | None = None
        self._running: tuple[LoopThread, HttpServer, int] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        where = "not running" if self._running is None else self._url
        return f"Sandbox({where}, accounts: {self._accounts.names()})"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start serving; on return, requests are answered. Does nothing if it runs already.

        Raises:
            OSError: the address cannot be used, usually because the port is in use.
        """
        with self._lock:
            if self._running is None:
                listener = listen(self._host, self._port)
                thread = LoopThread("sunx-adapter-sandbox")
                server = HttpServer(self._handle, listener)
                self._running = thread, server, os.getpid()
                thread.run(server.start())
                host, port = listener.getsockname()[:2]
                self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                # A sandbox that was not closed must not keep the interpreter from exiting.
                atexit.register(self.close)
        return self

    def close(self) -> None:
        """Close all connections and the port. Does nothing if it is closed already."""
        with self._lock:
            if self._running is not None:
                atexit.unregister(self.close)
                thread, server, process = self._running
                if process == os.getpid():  # the child of a fork has no such thread
                    thread.run(server.stop())
                    thread.stop()
                self._running = None

    def wait(self) -> None:
        """Block until another thread closes the sandbox; Ctrl-C interrupts it.

        Raises:
            RuntimeError: it was never started.
        """
        _ = self.url
        while self._running is not None:
            time.sleep(_WAIT_SECONDS)

    @property
    def accounts(self) -> tuple[SandboxAccount, ...]:
        """The current accounts, in the order given."""
        return self._accounts.all()

    @property
    def url(self) -> str:
        """The address for REST, ``"http://127.0.0.1:PORT"``; still available after closing.

        Raises:
            RuntimeError: it was never started.
        """
        if self._url is None:
            raise RuntimeError("the sandbox was never started: use `with Sandbox() as sandbox:`")
        return self._url

    @property
    def stream_url(self) -> str:
        """The address for the push channel, ``"ws://127.0.0.1:PORT"``; see :attr:`url`."""
        return self.url.replace("http", "ws", 1)

    @property
    def requests(self) -> tuple[SandboxRequest, ...]:
        """The latest requests, oldest first. A request is added before its answer is sent."""
        with self._log_lock:
            return tuple(self._log)

    @property
    def request_count(self) -> int:
        """The total number of received requests."""
        return self._request_count

    def account(self, name: str) -> SandboxAccount:
        """The account of that name.

        Raises:
            ValueError: there is none; the message lists the existing ones.
        """
        return self._accounts.named(name)

    def update(
        self, account: str, balance: Mapping[str, Any] | Iterable[Holding], *, state: str = "normal"
    ) -> SandboxAccount:
        """Change an account: reads return the new balance from now on, and it is pushed.

        Args:
            account: its name.
            balance: its holdings, or the complete ``data`` of the balance answer.
            state: the venue's name or number of the account state; ignored with complete ``data``.

        Raises:
            ValueError: there is no such account.
        """
        if not isinstance(balance, Mapping):
            balance = balance_data(balance, state=state, updated_time=round(self._clock() * 1000))
        return self._accounts.update(account, balance)

    def config(
        self,
        venue: str,
        account: str | None = None,
        signature_method: SignatureMethod | None = None,
    ) -> dict[str, Any]:
        """An exchange configuration with this sandbox's address and an account's keys.

        Args:
            venue: the exchange's id, ``"sunx"`` or ``"htxfutures"``.
            account: name of an account; default: the first.
            signature_method: default: the first method that the account's key is enabled for.

        Raises:
            ValueError: there is no such venue or account, or the key is not enabled for the
                method; the message lists the valid ones.
            RuntimeError: the sandbox was never started.
        """
        if venue not in VENUES:
            raise ValueError(f"no venue {venue!r}; the venues are: {', '.join(VENUES)}")
        chosen = self.accounts[0] if account is None else self.account(account)
        methods = chosen.signature_methods
        method = signature_method or methods[0]
        if method not in methods:
            key = f"the key of account {chosen.name!r}"
            raise ValueError(f"{key} is not enabled for {method!r}, but for: {', '.join(methods)}")
        with_secret = method == "HmacSHA256"
        return {
            "apiKey": chosen.api_key,
            **({"secret": chosen.secret} if with_secret else {"privateKey": chosen.private_key}),
            "uid": chosen.uid,
            "urls": {"api": {"rest": self.url, "stream": self.stream_url}},
        }

    def configs(
        self, venue: str, signature_method: SignatureMethod | None = None
    ) -> dict[str, dict[str, Any]]:
        """An exchange configuration for each account, by account name; see :meth:`config`."""
        names = (account.name for account in self.accounts)
        return {name: self.config(venue, name, signature_method) for name in names}

    async def _handle(self, http_request: web.BaseRequest) -> Delivery | web.StreamResponse:
        now, headers = self._clock(), http_request.headers
        path, _, query = http_request.raw_path.partition("?")
        fault, clocks = draw = self.draw(path)
        venue_now = now + draw.clock_seconds
        host = headers.get("Host", "")
        request = HttpRequest(http_request.method, path, query, host, round(venue_now * 1000))
        # The push channel itself applies the faults that refuse a login.
        opens_channel = fault is None or fault.rule.login is not None
        if path in STREAM_VARIANTS and "Upgrade" in headers and opens_channel:
            if self._push.accepts(http_request):
                accepted = SandboxAnswer(HTTPStatus.SWITCHING_PROTOCOLS, "ok")
                self._record(now, request, accepted, None)
                return await self._push.serve(http_request, request)
            answer = page(HTTPStatus.BAD_REQUEST)
        else:
            answer = self._responder.answer(request, round(now * 1000))
        changed = None if fault is None else fault.applied_to(answer, request)
        if changed is None:
            fault = None
        else:
            answer = replace(changed, uid=answer.uid)
        self._record(now, request, answer, fault or next(iter(clocks), None))
        head, body = _encoded(answer, headers.get("Accept-Encoding"), venue_now)
        if request.method == "HEAD":
            body = b""
        return whole(head + body) if fault is None else fault.delivered(head, body)

    def _record(
        self, now: float, request: HttpRequest, answer: SandboxAnswer, fault: Fault | None
    ) -> None:
        answered = fault is None or fault.rule.instead is None
        status, code = (answer.status, answer.code) if answered else (None, None)
        path, moment = request.path[:_LOGGED_PATH_CHARACTERS], time.monotonic()
        entry = SandboxRequest(now, moment, request.method, path, answer.uid, status, code, fault)
        with self._log_lock:
            self._log.append(entry)
            self._request_count += 1
        _logger.info("%s", printable(str(entry)))


def _encoded(answer: SandboxAnswer, accept_encoding: str | None, now: float) -> tuple[bytes, bytes]:
    """The head and the body of an answer, compressed if the client accepts gzip."""
    headers = {"Server": "sunx-adapter-sandbox", "Vary": "Accept-Encoding", **answer.headers}
    headers["Date"] = formatdate(now, usegmt=True)
    body = answer.body
    if body and "Content-Encoding" not in headers and accepts_gzip(accept_encoding):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, mtime=0)
    headers["Content-Length"] = str(len(body))
    return http_head(answer.status, headers), body


def accepts_gzip(header: str | None) -> bool:
    """Whether an ``Accept-Encoding`` header accepts gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, bool] = {}
    for item in (header or "").lower().split(","):
        coding, _, weight = item.partition(";")
        weights[coding.strip()] = weight.strip().rstrip("0") not in {"q=", "q=0."}
    return weights.get("gzip", weights.get("*", False))
