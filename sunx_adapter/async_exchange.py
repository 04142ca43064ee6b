"""The asynchronous classes: the same face, sent without blocking the event loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import wraps
from typing import Any, Self, cast

import ccxt.async_support
import httpx
from ccxt.base.errors import BaseError, ExchangeClosedByUser

from sunx_adapter.exchange import Call, Method, VenueFace, connection_attributes
from sunx_adapter.protocol.account import AccountSummary, read_account, summarize
from sunx_adapter.protocol.document import Document
from sunx_adapter.protocol.envelope import HttpAnswer
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.stream import STREAM_DEFAULTS, BalanceWatch, Place, StreamStatus
from sunx_adapter.transport import asynchronous
from sunx_adapter.transport.redaction import without_signature
from sunx_adapter.venue import HTX_FUTURES, SUNX


def _public(method: Method) -> Method:
    """Let a method fail with nothing but what the user may see."""

    @wraps(method)
    async def call(self: "AsyncFace", *args: Any, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        if task is None:  # only where no event loop runs it
            raise RuntimeError("an asynchronous exchange is called from within a task")
        outermost = task not in self._calls
        if outermost:
            self._calls.add(task)
        failure: BaseException
        try:
            return await method(self, *args, **kwargs)
        except asyncio.CancelledError as error:
            closed = ExchangeClosedByUser("closed during the call")
            failure = self._failure(closed, method.__name__.lstrip("_"))
            if task not in self._ended or task.uncancel():
                # Made anew, too: its traceback leads through the signed request.
                failure = asyncio.CancelledError(*error.args)
        except Exception as error:  # noqa: BLE001 - nothing else reaches the user, see _failure()
            failure = self._failure(error, method.__name__.lstrip("_"))
        finally:
            if outermost:
                self._calls.discard(task)
                self._ended.discard(task)
        raise failure

    return cast("Method", call)


class AsyncFace(VenueFace):
    """How the asynchronous classes send. What the methods mean is told in ``SyncFace``."""

    serves = frozenset({"fetchBalance", "watchBalance", "ws"})

    _transport: httpx.AsyncBaseTransport | None = None
    _made_by: Any = None

    def _prepare(self) -> None:
        # The tasks that are in a call, and those of them that close() has ended.
        self._calls: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        # Transports that other settings took the place of, until close().
        self._replaced: list[httpx.AsyncBaseTransport] = []
        self._watch = BalanceWatch(self)

    def describe(self) -> dict[str, Any]:
        """What this exchange is and can do, in ccxt's terms."""
        described: dict[str, Any] = super().describe()
        described["pro"] = True
        described["options"] |= STREAM_DEFAULTS
        return described

    def open(self, lazy: bool = False) -> None:
        """Open again after :meth:`close`; connections are made when they are needed."""
        self._closed = self._closed and lazy
        if getattr(self, "asyncio_loop", None) is None:
            self.asyncio_loop: Any = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, clean_instance_data: bool = False) -> None:
        """Close the connections that are the exchange's own.

        Calls under way in other tasks end with ``ExchangeClosedByUser``, later ones too.
        """
        self._closed = True
        for task in self._calls - self._ended:
            self._ended.add(task)
            task.cancel()
        await self._watch.close()
        transport, self._transport = self._transport, None
        for used in (*self._replaced, transport):
            if used is not None:
                await used.aclose()
        self._replaced.clear()
        if clean_instance_data:
            self.clean_rest_data()

    @_public
    async def fetch_balance(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The account's balance, exactly; see ``SyncFace.fetch_balance``."""
        call, policy = self._balance_call(params or {})
        document, body = await self._read(call)
        return self._structure(read_account(document, body), policy)

    @_public
    async def watch_balance(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The next balance that the venue pushes; the first one at once.

        One connection serves all tasks. A task that comes late gets the newest balance, and never
        an old one; after a drop there is a fresh one, so that nothing is missed.

        Args:
            params: ``type``, ``subType``, ``marginMode`` and ``free`` as in ``fetch_balance``.

        Returns:
            The same structure as ``fetch_balance``; ``info`` is the message as it came.

        Raises:
            NetworkError: what is newest has not been known for ``options["streamGapTimeout"]`` ms.
            BadResponse: a message could not be understood; the stream goes on.
            ccxt.BaseError: the exception of the error table; a refused key is not tried again.
        """
        return await self._watch.next(params or {})

    async def watch_balances(
        self, params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """``async for balance in exchange.watch_balances():``; see :meth:`watch_balance`.

        What is raised ends the loop; a new one goes on with the same connection.
        """
        place = Place()
        while True:
            yield await self._watch_balances(params, place)

    @_public
    async def _watch_balances(
        self, params: Mapping[str, Any] | None, place: Place
    ) -> dict[str, Any]:
        return await self._watch.next(params or {}, place)

    def stream_status(self) -> StreamStatus:
        """How the push connection does: its state, the age of the newest balance, what failed."""
        return self._watch.status()

    @_public
    async def fetch_account_summary(
        self, params: Mapping[str, Any] | None = None
    ) -> AccountSummary:
        """The account's state and figures as a whole; parameters as in ``fetch_balance``."""
        call, _ = self._balance_call(params or {})
        return summarize(read_account(*await self._read(call)))

    async def load_markets(
        self,
        reload: bool = False,  # noqa: ARG002
        params: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """The markets given in the configuration, else none: a balance needs none."""
        return self._given_markets()

    @_public
    async def fetch2(
        self,
        path: str,
        api: str | list[str] = "public",
        method: str = "GET",
        params: Mapping[str, Any] | None = None,
        *_more: Any,
        **_rest: Any,
    ) -> Any:
        """ccxt's way to an endpoint, taken by the implicit methods: the answer as it came."""
        document, _body = await self._read(self._endpoint_call(path, api, method, params))
        return document.info

    @_public
    async def fetch(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """ccxt's way to an address, for what ``sign()`` gave: the answer as it came."""
        self._check_fetch(url, method, body)
        request = self._request(url, headers)
        try:
            answer = await self._send(request, self._deadline())
            return self._document(answer, request).info
        except (BaseError, TransientError) as error:
            raise without_signature(error, request) from None

    @_public
    async def load_time_difference(self, params: Mapping[str, Any] | None = None) -> int:  # noqa: ARG002
        """Measure, and go by from now on, how many ms our clock is ahead of the venue's."""
        return await self._measure_clock(self._deadline())

    async def _measure_clock(self, deadline: float) -> int:
        request = self._request(self._url(self._time_call()))
        return self._measured(await self._send(request, deadline))

    async def _read(self, call: Call) -> tuple[Document, bytes]:
        deadline = self._deadline()
        if call.private:
            self.check_required_credentials()
            if self.options["adjustForTimeDifference"] and not self._clock_measured:
                await self._measure_clock(deadline)
        tries = None
        while True:
            try:
                return await self._read_once(call, deadline)
            except TransientError as failure:
                tries = tries or self._tries(deadline)
                await asyncio.sleep(tries.after(failure))
            except BaseError as error:
                raise (tries.given_up(error) if tries else error) from None

    async def _read_once(self, call: Call, deadline: float) -> tuple[Document, bytes]:
        budget = self._read_budget() if call.private else None
        for limit in (budget, self._pace() if call.private else None):
            if limit is not None:
                await limit.take_async(self._budget_deadline(deadline))
        request = self._request(self._url(call))
        try:
            answer = await self._send(request, deadline)
            if budget is not None:
                await budget.follow_async(answer.headers)
            return self._document(answer, request), answer.body
        except (BaseError, TransientError) as error:
            raise without_signature(error, request) from None

    async def _send(self, request: httpx.Request, deadline: float) -> HttpAnswer:
        return await asynchronous.send(
            self._current_transport(), request, **self._sending(deadline)
        )

    def _current_transport(self) -> httpx.AsyncBaseTransport:
        if (given := self._given_transport(httpx.AsyncBaseTransport)) is not None:
            return given
        made_by = connection_attributes(self)
        if self._transport is None or self._made_by != made_by:
            self._check_open()
            if self._transport is not None:
                self._replaced.append(self._transport)
            self._made_by = made_by
            self._transport = asynchronous.PooledTransport(self._connection_settings())
        return self._transport


class AsyncSunx(AsyncFace, ccxt.async_support.Exchange, venue=SUNX):  # type: ignore[misc]
    """SunX, asynchronous: ``await AsyncSunx({…}).fetch_balance()``."""


class AsyncHtxFutures(AsyncFace, ccxt.async_support.Exchange, venue=HTX_FUTURES):  # type: ignore[misc]
    """HTX's USDT-M futures (v5), asynchronous."""
