"""What ccxt exception a failure on the network is."""

import ssl
from typing import Final

from ccxt.base.errors import BaseError, ExchangeError, NetworkError, RequestTimeout

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.wire.route import Unsendable

_MAX_REASON: Final = 200


def network_fault(error: Exception, address: str, timeout_ms: float) -> BaseError | TransientError:
    """What to raise for a failure on the wire; another try may succeed where this one did not.

    Args:
        error: an operating system's error (a TimeoutError is one), or ``Unsendable``.
        address: where the request was to go, without its query.
        timeout_ms: the call's timeout, for the text.
    """
    if isinstance(error, TimeoutError):
        return RequestTimeout(f"GET {address}: no whole answer within {timeout_ms:g} ms (timeout)")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:_MAX_REASON]
    if isinstance(error, Unsendable):
        return ExchangeError(f"GET {address}: {reason}")
    if isinstance(error, ssl.SSLCertVerificationError) or "certificate verify failed" in reason:
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
