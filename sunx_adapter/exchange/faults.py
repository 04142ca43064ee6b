"""Turns failures into ccxt's exceptions.

``NetworkError`` and its subclasses are temporary: another try may succeed.
"""

import ssl
from collections.abc import Mapping
from http import HTTPStatus

from ccxt.base.errors import BadResponse, BaseError, ExchangeError, NetworkError, RequestTimeout

from sunx_adapter.protocol.envelope import is_temporary, redirect_text
from sunx_adapter.protocol.errors import TransientError
from sunx_adapter.wire.answer import DeclinedError
from sunx_adapter.wire.route import UnsendableError


def network_fault(error: Exception, what: str) -> BaseError | TransientError:
    """The exception for a request that failed on the network.

    Args:
        error: an ``OSError``, or ``UnsendableError``.
        what: the method and address without its query, or the URL, for the message.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, UnsendableError):
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


def connect_fault(
    error: Exception, url: str, timeout_ms: float, http_exceptions: Mapping[str, type[BaseError]]
) -> BaseError | TransientError:
    """The exception for a push channel that cannot be opened.

    Args:
        error: an ``OSError``, ``UnsendableError`` or ``DeclinedError``.
        url: the push channel's URL; it holds no secret.
        timeout_ms: how long opening it may take.
        http_exceptions: ccxt's ``Exchange.httpExceptions``, by HTTP status.
    """
    if isinstance(error, TimeoutError):
        return TransientError(
            RequestTimeout(f"{url}: no connection within {timeout_ms:g} ms (timeout)")
        )
    if not isinstance(error, DeclinedError):
        return network_fault(error, url)
    status = error.status
    if error.location is not None:
        return BadResponse(f"{url}: {redirect_text(status, error.location)}")
    text = f"{url}: HTTP {status} instead of a WebSocket"
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return NetworkError(f"{text}: the proxy refused its user name or password")
    if status < HTTPStatus.BAD_REQUEST:
        return BadResponse(f"{text}: {error}")
    failure = http_exceptions.get(str(status), ExchangeError)(text)
    return TransientError(failure) if is_temporary(status) else failure


def as_ccxt(error: Exception) -> BaseError:
    """The exception as one of ccxt's classes."""
    if isinstance(error, TransientError):
        return error.error
    if isinstance(error, BaseError):
        return error
    return ExchangeError(f"unexpected {type(error).__name__}: {error}")
