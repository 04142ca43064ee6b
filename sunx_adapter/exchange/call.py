"""One read, from its parameters to the decoded answer, written once for both kinds of exchange.

The coroutines here suspend only in :mod:`~sunx_adapter.exchange.waiting` and in
:mod:`~sunx_adapter.wire`. In threads these never suspend, so one ``send(None)`` runs a call to its
end (:func:`sunx_adapter.wire.threads.run`).
"""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from ccxt.base.errors import (
    BadRequest,
    BadResponse,
    BaseError,
    ExchangeClosedByUser,
    NotSupported,
    RequestTimeout,
)

from sunx_adapter.exchange.budget import SHARED_WINDOWS, Limit, MemoryWindows, ReadBudget
from sunx_adapter.exchange.config import MAX_TIMEOUT_MS, check_address
from sunx_adapter.exchange.face import RATE_LIMIT_MS, Call, Face, Params, check_read_only
from sunx_adapter.exchange.faults import network_fault
from sunx_adapter.exchange.redaction import redact_logs
from sunx_adapter.exchange.retry import Retries
from sunx_adapter.exchange.waiting import Waiting
from sunx_adapter.protocol.account import AccountAnswer, AccountSummary, read_account, summarize
from sunx_adapter.protocol.document import Document
from sunx_adapter.protocol.envelope import HttpAnswer, read_envelope, venue_time
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.wire.body import MAX_RESPONSE_BYTES
from sunx_adapter.wire.connections import Connections
from sunx_adapter.wire.route import GetRequest, UnsendableError

if TYPE_CHECKING:
    from sunx_adapter.wire.transports import GivenTransport


Result = TypeVar("Result")


class Reader(Face):
    """The part of an exchange that sends reads."""

    _asynchronous = False
    _waiting: Waiting
    _connections: Connections

    def _prepare(self) -> None:
        self._clock_measured = False
        self._pace = MemoryWindows()

    def _sender(self) -> "Connections | GivenTransport":
        """The connections, or the user's transport, over which to send."""
        if (transport := self.options.get("transport")) is not None:
            from sunx_adapter.wire.transports import GivenTransport  # noqa: PLC0415 - imports httpx

            redact_logs()
            try:
                return GivenTransport(transport, asynchronous=self._asynchronous)
            except TypeError as error:
                raise NotSupported(f"options['transport']: {error}") from None
        return self._connections

    # -- the public methods, for both kinds -------------------------------------------------

    async def _balance(self, params: Params) -> dict[str, Any]:
        parameters, policy = self._parameters(params)
        return await self._account(parameters, lambda answer: self._structure(answer, policy))

    async def _account_summary(self, params: Params) -> AccountSummary:
        return await self._account(self._parameters(params)[0], summarize)

    async def _account(
        self, parameters: Mapping[str, Any], mapping: Callable[[AccountAnswer], Result]
    ) -> Result:
        call = self._get(self._paths().balance, parameters)
        return await self._read(call, lambda document: mapping(read_account(document)))

    async def _endpoint(self, path: str, api: str | list[str], method: str, params: Params) -> Any:
        call = self._endpoint_call(path, api, method, params)
        return await self._read(call, lambda document: document.info)

    async def _fetch_url(
        self, url: str, method: str, headers: Mapping[str, str] | None, body: object
    ) -> Any:
        address, _, query_text = url.partition("?")
        check_address(address)
        check_read_only(method, body)
        query = parse_qs(query_text.partition("#")[0])
        api_key = query.get("AccessKeyId", [""])[0]
        uid = self.uid if api_key == self.apiKey else None
        call = Call(address, lambda: url, api_key, "Signature" in query, headers or {}, uid)
        deadline = self._deadline()
        work = self._send(call, deadline, self._parser(lambda document: document.info))
        return await self._in_time(call, deadline, work)

    async def _time_difference(self) -> int:
        deadline = self._deadline()
        call = self._time_call()
        return await self._in_time(call, deadline, self._measure_clock(call, deadline))

    # -- one read ---------------------------------------------------------------------------

    async def _read(self, call: Call, mapping: Callable[[Document], Result]) -> Result:
        """Send a call, with retries; returns the result of ``mapping`` for the answer."""
        deadline = self._deadline()
        retries = Retries(
            deadline,
            self.options["maxRetriesOnFailure"],
            use_clock=self._use_clock,
            log=lambda text: self._log(logging.WARNING, text),
        )
        try:
            work = self._with_retries(call, deadline, self._parser(mapping), retries)
            return await self._in_time(call, deadline, work)
        except BaseError as error:
            raise retries.final_error(error) from None

    async def _in_time(
        self, call: Call, deadline: float, work: Coroutine[Any, Any, Result]
    ) -> Result:
        try:
            return await self._waiting.within(deadline, work)
        except TimeoutError:
            self._check_open()
        except BaseError:
            self._check_open()  # closing the exchange may have caused any error
            raise
        raise RequestTimeout(
            f"GET {call.address}: no whole answer within {self._milliseconds():g} ms (timeout)"
        )

    async def _with_retries(
        self, call: Call, deadline: float, parse: Callable[[HttpAnswer], Result], retries: Retries
    ) -> Result:
        if call.private and self.options["adjustForTimeDifference"] and not self._clock_measured:
            await self._measure_clock(self._time_call(), deadline)
        while True:
            try:
                return await self._send(call, deadline, parse)
            except TransientError as failure:
                self._check_open()
                # Without its traceback: the error raised next would keep the frames of this try.
                await self._waiting.pause(retries.after(failure.with_traceback(None)))

    def _parser(self, mapping: Callable[[Document], Result]) -> Callable[[HttpAnswer], Result]:
        def parse(answer: HttpAnswer) -> Result:
            document = read_envelope(answer, self.httpExceptions)
            if self.enableLastJsonResponse:
                self.last_json_response = copy.deepcopy(document.info)
            return mapping(document)

        return parse

    async def _send(
        self, call: Call, deadline: float, parse: Callable[[HttpAnswer], Result]
    ) -> Result:
        """Send a call once; returns the result of ``parse`` for the answer."""
        limit = self.options.get("maxResponseBytes", MAX_RESPONSE_BYTES)
        reads = self._read_budget(call)
        url, written = "", False

        async def prepare() -> GetRequest:
            nonlocal url, written
            await reads.take(deadline)
            self._check_open()
            url = call.url()
            self._record_request(url)
            request = GetRequest(url, {**self._headers(), **call.headers}, sending, reads.settle)
            await reads.take(deadline)  # again: logging may have taken long
            return request

        def sending() -> None:
            nonlocal written
            self.before_write()
            written = True

        failure: Exception
        try:
            await reads.reserve(deadline)
            try:
                answered = await self._sender().fetch(
                    call.address,
                    call.api_key,
                    prepare,
                    settings=self._connection_settings(),
                    deadline=deadline,
                    limit=limit,
                )
            except TimeoutError:
                raise
            except (OSError, UnsendableError) as error:
                raise network_fault(error, f"GET {call.address}") from None
            await reads.follow(answered.headers, deadline)
            answer = HttpAnswer(answered.status, answered.headers, *answered.content())
            self._record_answer(answer, url)
            return parse(answer)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception may quote the answer
            # Here, this request's key and signature are known: a peer may repeat them.
            failure = self._redacted(error, url=url)
            if isinstance(error, TransientError):
                failure = TransientError(failure, error.retry_after, error.venue_time)
        finally:
            reads.settle(written=written)
        try:
            raise failure
        finally:
            del failure  # or the exception and this frame would refer to each other

    def _read_budget(self, call: Call) -> ReadBudget:
        users, pace = [], None
        if call.private and self.enableRateLimit:
            users = SHARED_WINDOWS.users_of(self.venue.id, call.api_key, call.uid)
            if self.rateLimit > RATE_LIMIT_MS:  # ccxt's setting, if stricter than the venue's
                text = f"one read in rateLimit ({self.rateLimit:g} ms)"
                pace = self._pace, Limit(1, self.rateLimit / 1000, text)
        longest = self.options.get("rateLimitTimeout")
        return ReadBudget(
            users,
            self.options["rateLimitStorage"],
            longest=None if longest is None else longest / 1000,
            fallback=self.options.get("rateLimitFallback") == "memory",
            pace=pace,
            waiting=self._waiting,
        )

    # -- the clock --------------------------------------------------------------------------

    async def _measure_clock(self, call: Call, deadline: float) -> int:
        measured = await self._send(call, deadline, venue_time)
        if measured is None:
            raise BadResponse("the answer has neither ts nor Date, so the clock cannot be measured")
        self._use_clock(measured)
        self._clock_measured = True
        difference: int = self.options["timeDifference"]
        return difference

    def _use_clock(self, venue_time: int) -> int:
        """Use the venue's clock from now on; returns how many ms ours was ahead of it."""
        ahead = self._clock() - venue_time
        self.options["timeDifference"] += ahead
        return ahead

    # -- the rest ---------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._connections.closed:
            raise ExchangeClosedByUser("the exchange was closed; make a new one")

    def _deadline(self) -> float:
        self._check_open()
        return time.monotonic() + self._milliseconds() / 1000

    def _milliseconds(self) -> float:
        """The timeout, which a user may set at any time."""
        with contextlib.suppress(TypeError, ValueError):
            if 0 < (milliseconds := float(self.timeout)) <= MAX_TIMEOUT_MS:
                return milliseconds
        raise BadRequest(f"timeout = {self.timeout!r} is not a positive number of milliseconds")

    def _record_request(self, url: str) -> None:
        self.lastRestRequestTimestamp = self.milliseconds()
        # Without the query: it holds the key and the signature.
        self.last_request_url = url.partition("?")[0]
        _, signed, signature = url.rpartition("Signature=")
        if signed:
            self._signatures.append(signature.partition("&")[0])
        if self.verbose:
            self._print("fetch Request", f"GET {url}", url=url)
        self._log(logging.DEBUG, f"GET {self.last_request_url}")

    def _record_answer(self, answer: HttpAnswer, url: str) -> None:
        if self.enableLastHttpResponse:
            self.last_http_response = answer.body.decode("utf-8", "replace")
        if self.enableLastResponseHeaders:
            self.last_response_headers = answer.headers
        if self.verbose:
            text = answer.body.decode("utf-8", "replace")
            self._print("fetch Response", answer.status, text, url=url)
        self._log(logging.DEBUG, f"HTTP {answer.status}, {len(answer.body)} bytes")
