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
    # Of an answer that is no HTTP the parser quotes more, from the second line on.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:_MAX_REASON]
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return ExchangeError(f"GET {address}: the address cannot be used: {reason}")
    if isinstance(error, httpx.LocalProtocolError):
        return ExchangeError(f"GET {address}: the request cannot be sent: {reason}")
    if "CERTIFICATE_VERIFY_FAILED" in reason or "certificate verify failed" in reason:
        return NetworkError(
            f"GET {address}: the certificate cannot be verified: {reason}. If the host's authority "
            "is your own, name its file with cafile"
        )
    return TransientError(
        NetworkError(
            f"GET {address}: {reason} ({type(error).__name__}); "
            "check the network, the host and any proxy"
        )
    )
