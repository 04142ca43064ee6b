"""The asynchronous exchanges, which can also watch balances."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

import ccxt.async_support
from ccxt.base.errors import BadResponse, ExchangeClosedByUser, NetworkError, NotSupported

from sunx_adapter.balance import Amounts, View
from sunx_adapter.exchange.call import Reader
from sunx_adapter.exchange.face import Params
from sunx_adapter.exchange.faults import connect_fault
from sunx_adapter.exchange.waiting import TaskWaiting
from sunx_adapter.frames import without_frames
from sunx_adapter.protocol.account import AccountSummary
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.protocol.push import auth_message
from sunx_adapter.stream import STREAM_DEFAULTS, StreamSettings, StreamSource, StreamStatus
from sunx_adapter.stream.cursor import Cursor
from sunx_adapter.stream.watch import BalanceWatch
from sunx_adapter.venue import HTX_FUTURES, SUNX
from sunx_adapter.wire.answer import DeclinedError
from sunx_adapter.wire.body import MAX_RESPONSE_BYTES
from sunx_adapter.wire.route import UnsendableError
from sunx_adapter.wire.tasks import TaskConnections
from sunx_adapter.wire.websocket import PushSocket, connect

if TYPE_CHECKING:
    from ccxt.base.types import Balances

Result = TypeVar("Result")


class AsyncExchange(Reader, ccxt_class=ccxt.async_support.Exchange):
    """An asynchronous exchange; ``SyncExchange`` documents the methods that both have."""

    serves = frozenset({"fetchBalance", "watchBalance", "ws"})

    _asynchronous = True
    _waiting: TaskWaiting
    _connections: TaskConnections

    def _prepare(self) -> None:
        super()._prepare()
        self._waiting, self._connections = TaskWaiting(), TaskConnections()
        # The tasks that are in a call, and those of them that close() has cancelled.
        self._calls: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._watch = BalanceWatch(
            StreamSource(
                identity=self._stream_identity,
                settings=lambda: StreamSettings.of(self.options, self._milliseconds()),
                connect=self._stream_connect,
                login=self._stream_login,
                read=lambda: self._account({}, lambda answer: answer),
                clock_ahead=lambda venue_time: self._clock() - venue_time,
                use_clock=self._use_clock,
                redacted=self._redacted,
                warn=lambda text: self._log(logging.WARNING, text),
            )
        )

    def describe(self) -> dict[str, Any]:
        """This exchange's description in ccxt's structure."""
        described: dict[str, Any] = super().describe()
        described["pro"] = True
        described["options"] |= STREAM_DEFAULTS
        return described

    def open(self, lazy: bool = False) -> None:
        """Open again after :meth:`close`; connections are made when needed."""
        if self._connections.closed and not lazy:
            self._connections = TaskConnections()
        if getattr(self, "asyncio_loop", None) is None:
            self.asyncio_loop: Any = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, clean_instance_data: bool = False) -> None:
        """Close the exchange's connections.

        Calls under way in other tasks, and later calls, raise ``ExchangeClosedByUser``.
        """
        connections = self._connections  # another task may open the exchange meanwhile
        connections.closed = True
        for task in self._calls - self._ended:
            self._ended.add(task)
            task.cancel()
        await self._watch.close()
        await connections.aclose()
        if clean_instance_data:
            self.clean_rest_data()

    async def _call(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a call; all its exceptions are redacted copies."""
        task = asyncio.current_task()
        if task is None:  # driven by hand, without an event loop
            work.close()
            raise RuntimeError("an asynchronous exchange can be called only within a task")
        self._calls.add(task)
        failure: BaseException
        where = f"{self.id} {name}(): "
        try:
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - see _redacted()
                failure = self._redacted(error, where)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, perhaps during the redaction
            failure = without_frames(error)
            cancelled = isinstance(failure, asyncio.CancelledError)
            if cancelled and task in self._ended and not task.uncancel():
                failure = ExchangeClosedByUser(f"{where}closed during the call")
        finally:
            self._calls.discard(task)
            self._ended.discard(task)
        try:
            raise failure
        finally:
            del failure  # or the exception and this frame would refer to each other

    async def fetch_balance(self, params: Params = None) -> "Balances":
        """The account's balance, exactly; see ``SyncExchange.fetch_balance``."""
        return await self._call("fetch_balance", self._balance(params))

    async def fetch_partial_balance(self, part: View, params: Params = None) -> Amounts:
        """One view of the balance by currency; parameters as in ``fetch_balance``."""
        amounts: Any = await self.fetch_balance(params)
        return amounts[part]  # type: ignore[no-any-return]

    async def fetch_free_balance(self, params: Params = None) -> Amounts:
        """The free amount of each currency."""
        return await self.fetch_partial_balance("free", params)

    async def fetch_used_balance(self, params: Params = None) -> Amounts:
        """The used amount of each currency."""
        return await self.fetch_partial_balance("used", params)

    async def fetch_total_balance(self, params: Params = None) -> Amounts:
        """The equity in each currency."""
        return await self.fetch_partial_balance("total", params)

    def watch_balance(self, params: Params = None) -> Coroutine[Any, Any, "Balances"]:
        """Wait for the next balance; the first call returns the newest one as soon as there is one.

        One connection serves all tasks. A slow task gets the newest balance, never an old one.
        After a dropped connection a fresh balance follows, so that no change is missed.

        Args:
            params: ``type``, ``subType``, ``marginMode`` and ``free`` as in ``fetch_balance``.

        Returns:
            The same structure as ``fetch_balance``; ``info`` is the pushed message.

        Raises:
            NetworkError: no fresh balance for ``options["streamGapTimeout"]`` ms.
            BadResponse: a message was unreadable; the stream continues.
            ccxt.BaseError: the exception of the error table; a refused key is not tried again.
        """
        # The calling task's cursor: asyncio.wait_for() may await the coroutine in another task.
        return self._call("watch_balance", self._watched(params, self._watch.cursor()))

    fetchBalance = fetch_balance
    fetchPartialBalance = fetch_partial_balance
    fetchFreeBalance = fetch_free_balance
    fetchUsedBalance = fetch_used_balance
    fetchTotalBalance = fetch_total_balance
    watchBalance = watch_balance

    async def watch_balances(self, params: Params = None) -> AsyncIterator["Balances"]:
        """``async for balance in exchange.watch_balances():``; see :meth:`watch_balance`.

        An exception ends the loop; a new loop uses the same connection.
        """
        cursor = Cursor()
        while True:
            yield await self._call("watch_balances", self._watched(params, cursor))

    async def _watched(self, params: Params, cursor: Cursor | None) -> dict[str, Any]:
        parameters, policy = self._parameters(params)
        if parameters:
            names = ", ".join(map(repr, parameters))
            raise NotSupported(f"parameter {names} cannot be sent over the push channel")
        return await self._watch.next(lambda answer: self._structure(answer, policy), cursor)

    def stream_status(self) -> StreamStatus:
        """The push connection's state, the age of the newest balance, and the latest failure."""
        return self._watch.status()

    def _stream_url(self) -> str:
        return self._address("stream") + self._paths().stream

    def _stream_identity(self) -> object:
        self._check_open()
        credentials, settings = self._current_credentials(), self._connection_settings()
        return self._stream_url(), credentials, settings, self.check_ws_proxy_settings()

    async def _stream_connect(self) -> PushSocket:
        if self.options["adjustForTimeDifference"] and not self._clock_measured:
            try:
                await self._time_difference()
            except (NetworkError, BadResponse) as error:
                raise TransientError(error) from None
        settings = self._connection_settings()
        ws_proxy, wss_proxy, _ = self.check_ws_proxy_settings()
        proxy = ws_proxy or wss_proxy or settings.proxy
        if proxy is not None and proxy.startswith("socks"):
            raise NotSupported(
                "the push channel cannot go through a SOCKS proxy: set wssProxy to an HTTP proxy, "
                "or use fetch_balance()"
            )
        url = self._stream_url()
        headers = {
            name: text
            for name, text in self._headers().items()
            if not name.lower().startswith("accept")
        }
        try:
            async with asyncio.timeout(self._milliseconds() / 1000):
                return await connect(
                    url,
                    settings=settings._replace(proxy=proxy),
                    headers=headers,
                    max_bytes=self.options.get("maxResponseBytes", MAX_RESPONSE_BYTES),
                )
        except (OSError, DeclinedError, UnsendableError) as error:
            raise connect_fault(error, url, self._milliseconds(), self.httpExceptions) from None

    def _stream_login(self) -> str:
        message, signature = auth_message(
            self._current_credentials(),
            host=self._signature_host(self._address("stream")),
            path=self._paths().stream,
            milliseconds=self.nonce(),
        )
        self._signatures.append(signature)
        return message

    async def fetch_account_summary(self, params: Params = None) -> AccountSummary:
        """The account's state and totals; parameters as in ``fetch_balance``."""
        return await self._call("fetch_account_summary", self._account_summary(params))

    async def load_markets(self, reload: bool = False, params: Params = None) -> dict[str, Any]:  # noqa: ARG002
        """The markets of the configuration, if any. Balances need no markets."""
        return self._given_markets()

    async def fetch2(
        self,
        path: str,
        api: str | list[str] = "public",
        method: str = "GET",
        params: Params = None,
        *_more: Any,
        **_rest: Any,
    ) -> Any:
        """Call an endpoint, as ccxt's implicit methods do; returns the answer unchanged."""
        return await self._call("fetch2", self._endpoint(path, api, method, params))

    async def fetch(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """Send a request that ``sign()`` made; returns the answer unchanged."""
        return await self._call("fetch", self._fetch_url(url, method, headers, body))

    async def load_time_difference(self, params: Params = None) -> int:  # noqa: ARG002
        """Use the venue's clock from now on; returns how many ms ours is ahead of it."""
        return await self._call("load_time_difference", self._time_difference())


class AsyncSunx(AsyncExchange, ccxt.async_support.Exchange, venue=SUNX):  # type: ignore[misc]
    """SunX, asynchronous: ``await AsyncSunx({…}).fetch_balance()``."""


class AsyncHtxFutures(AsyncExchange, ccxt.async_support.Exchange, venue=HTX_FUTURES):  # type: ignore[misc]
    """HTX's USDT-M futures (v5), asynchronous."""
