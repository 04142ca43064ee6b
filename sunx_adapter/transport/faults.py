"""What ccxt exception a failure on the network is."""

from typing import Final

import httpx
from ccxt.base.errors import BaseError, ExchangeError, NetworkError, RequestTimeout

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.transport.request import request_url

_MAX_REASON: Final = 200


def network_fault(
    error: Exception, request: httpx.Request, timeout_ms: float
) -> BaseError | TransientError:
    """What to raise for what a transport raised; the next try may reach what this one did not.

    Args:
        error: httpx's exception, an operating system's, or a ``TimeoutError``.
        request: what was to be sent; its address without the query is part of the text.
        timeout_ms: the call's timeout, for the text.
    """
    address = request_url(request).partition("?")[0]
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return RequestTimeout(f"GET {address}: no whole answer within {timeout_ms:g} ms (timeout)")
    reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return ExchangeError(f"GET {address}: the address cannot be used: {reason}")
    return TransientError(
        NetworkError(
            f"GET {address}: {reason} ({type(error).__name__}); "
            "check the network, the host and any proxy"
        )
    )
