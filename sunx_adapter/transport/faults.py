"""What ccxt exception a failure on the network is."""

import httpx
from ccxt.base.errors import BaseError, ExchangeError, NetworkError, RequestTimeout

CHECK_NETWORK = "check the network, the host and any proxy"


def timed_out(timeout_ms: float) -> RequestTimeout:
    """No whole answer within the timeout."""
    return RequestTimeout(f"no whole answer within {timeout_ms:g} ms (timeout)")


def network_fault(error: Exception, timeout_ms: float) -> BaseError:
    """The ccxt exception for what a transport raised.

    Args:
        error: httpx's exception, or an operating system's.
        timeout_ms: the call's timeout, for the message.
    """
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return timed_out(timeout_ms)
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return ExchangeError(f"the address cannot be used: {reason}")
    return NetworkError(f"{reason} ({type(error).__name__}); {CHECK_NETWORK}")
