"""What ccxt exception a failure on the network is."""

import ssl

from ccxt.base.errors import BaseError, ExchangeError, NetworkError

from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.wire.route import Unsendable


def network_fault(error: Exception, what: str) -> BaseError | TransientError:
    """What to raise for a failure on the wire; another try may succeed where this one did not.

    Args:
        error: an operating system's error, or ``Unsendable``.
        what: what failed, for the text: an address without its query.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, Unsendable):
        return ExchangeError(f"{what}: {reason}")
    if isinstance(error, ssl.SSLCertVerificationError) or "certificate verify failed" in reason:
        return NetworkError(
            f"{what}: the certificate cannot be verified: {reason}. If the host's authority "
            "is your own, name its file with cafile"
        )
    return TransientError(
        NetworkError(
            f"{what}: {reason} ({type(error).__name__}); check the network, the host and any proxy"
        )
    )
