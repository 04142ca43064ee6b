"""The synchronous exchanges."""

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Never, Self, TypeVar

import ccxt
from ccxt.base.errors import NotSupported

from sunx_adapter.balance import Amounts, View
from sunx_adapter.exchange.call import Reader
from sunx_adapter.exchange.face import Params
from sunx_adapter.exchange.waiting import ThreadWaiting
from sunx_adapter.frames import without_frames
from sunx_adapter.protocol.account import AccountSummary
from sunx_adapter.venue import HTX_FUTURES, SUNX
from sunx_adapter.wire.threads import ThreadConnections, run

if TYPE_CHECKING:
    from ccxt.base.types import Balances

Result = TypeVar("Result")


class _NoSession:
    """Takes the place of ccxt's requests session, which is not needed."""

    headers: ClassVar[dict[str, str]] = {}

    def close(self) -> None:
        """Nothing to close."""


class SyncExchange(Reader, ccxt_class=ccxt.Exchange):
    """A synchronous exchange. Threads may share it."""

    session = _NoSession()
    _waiting: ThreadWaiting
    _connections: ThreadConnections

    def _prepare(self) -> None:
        super()._prepare()
        self._connections = ThreadConnections()
        self._waiting = ThreadWaiting(lambda: self._connections.closed)

    def __enter__(self) -> Self:
        # Like ccxt's asynchronous exchanges, it can be opened again.
        if self._connections.closed:
            self._connections = ThreadConnections()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, clean_instance_data: bool = False) -> None:
        """Close the exchange's connections.

        Calls under way in other threads, and later calls, raise ``ExchangeClosedByUser``.
        """
        self._connections.close()  # first: it says that the exchange is closed
        self._waiting.end()
        if clean_instance_data:
            self.clean_rest_data()

    def _call(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a call; all its exceptions are redacted copies."""
        failure: BaseException
        try:
            try:
                return run(work)
            except Exception as error:  # noqa: BLE001 - see _redacted()
                failure = self._redacted(error, f"{self.id} {name}(): ")
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, perhaps during the redaction
            work.close()
            failure = without_frames(error)
        try:
            raise failure
        finally:
            del failure  # or the exception and this frame would refer to each other

    def fetch_balance(self, params: Params = None) -> "Balances":
        """The account's balance, exactly.

        Args:
            params: ``type`` (``"swap"``, ``"future"``), ``subType`` (``"linear"``), ``marginMode``
                (``"cross"``), ``free`` (``"margin"``, ``"available"``, ``"withdrawable"``); any
                other parameter is signed and sent.

        Returns:
            ccxt's balance structure, see :func:`sunx_adapter.balance.balance_structure`.

        Raises:
            ccxt.BaseError: the exception of the error table; never an empty balance instead.
        """
        return self._call("fetch_balance", self._balance(params))

    def fetch_partial_balance(self, part: View, params: Params = None) -> Amounts:
        """One view of the balance by currency; parameters as in :meth:`fetch_balance`."""
        amounts: Any = self.fetch_balance(params)
        return amounts[part]  # type: ignore[no-any-return]

    def fetch_free_balance(self, params: Params = None) -> Amounts:
        """The free amount of each currency."""
        return self.fetch_partial_balance("free", params)

    def fetch_used_balance(self, params: Params = None) -> Amounts:
        """The used amount of each currency."""
        return self.fetch_partial_balance("used", params)

    def fetch_total_balance(self, params: Params = None) -> Amounts:
        """The equity in each currency."""
        return self.fetch_partial_balance("total", params)

    def watch_balance(self, params: Params = None) -> Never:  # noqa: ARG002
        """Not supported.

        Raises:
            NotSupported: always; only asynchronous exchanges can watch.
        """
        raise NotSupported(
            f"{self.id} watch_balance() is asynchronous: use Async{type(self).__name__}"
        )

    fetchBalance = fetch_balance
    fetchPartialBalance = fetch_partial_balance
    fetchFreeBalance = fetch_free_balance
    fetchUsedBalance = fetch_used_balance
    fetchTotalBalance = fetch_total_balance
    watchBalance = watch_balance

    def fetch_account_summary(self, params: Params = None) -> AccountSummary:
        """The account's state and totals; parameters as in ``fetch_balance``."""
        return self._call("fetch_account_summary", self._account_summary(params))

    def load_markets(self, reload: bool = False, params: Params = None) -> dict[str, Any]:  # noqa: ARG002
        """The markets of the configuration, if any. Balances need no markets."""
        return self._given_markets()

    def fetch2(
        self,
        path: str,
        api: str | list[str] = "public",
        method: str = "GET",
        params: Params = None,
        *_more: Any,
        **_rest: Any,
    ) -> Any:
        """Call an endpoint, as ccxt's implicit methods do; returns the answer unchanged."""
        return self._call("fetch2", self._endpoint(path, api, method, params))

    def fetch(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """Send a request that :meth:`sign` made; returns the answer unchanged."""
        return self._call("fetch", self._fetch_url(url, method, headers, body))

    def load_time_difference(self, params: Params = None) -> int:  # noqa: ARG002
        """Use the venue's clock from now on; returns how many ms ours is ahead of it."""
        return self._call("load_time_difference", self._time_difference())


class Sunx(SyncExchange, ccxt.Exchange, venue=SUNX):  # type: ignore[misc]
    """SunX, synchronous: ``Sunx({"apiKey": …, "secret": …}).fetch_balance()``."""


class HtxFutures(SyncExchange, ccxt.Exchange, venue=HTX_FUTURES):  # type: ignore[misc]
    """HTX's USDT-M futures (v5), synchronous."""
