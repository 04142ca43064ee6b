"""The settings of connections: certificates and proxies."""

import os
import ssl
import urllib.request
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import certifi

from sunx_adapter.wire.forks import FORK_LOCK

IDLE_SECONDS: Final = 15.0
"""After a longer idle time, a connection is not used again: the peer may be closing it."""


class ConnectionSettings(NamedTuple):
    """How to connect.

    Attributes:
        proxy: URL of an HTTP or SOCKS proxy, or ``None``.
        cafile: a file of certificate authorities that replaces certifi's.
        trust_env: whether ``SSLKEYLOGFILE``, ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured.
    """

    proxy: str | None = None
    cafile: str | None = None
    trust_env: bool = False

    def tls_context(self) -> ssl.SSLContext:
        """A context that verifies certificates and host names; equal settings share it.

        Raises:
            OSError: a file cannot be read, or has no certificates.
        """
        return _tls_context(self.cafile, self.trust_env)


@lru_cache(maxsize=64)
def _tls_context(cafile: str | None, trust_env: bool) -> ssl.SSLContext:
    with FORK_LOCK:
        context = _ForkSafeContext(ssl.PROTOCOL_TLS_CLIENT)
        if trust_env and not cafile:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile or certifi.where())
        if trust_env and (key_log := os.environ.get("SSLKEYLOGFILE")):
            context.keylog_filename = key_log
        return context


class _ForkSafeObject(ssl.SSLObject):
    """A fork waits for its methods: a lock that OpenSSL holds would stay locked in the child."""

    def do_handshake(self) -> None:
        with FORK_LOCK:
            super().do_handshake()

    def read(self, *args: Any) -> Any:
        with FORK_LOCK:
            return super().read(*args)

    def write(self, data: Any) -> int:
        with FORK_LOCK:
            return super().write(data)

    def unwrap(self) -> None:
        with FORK_LOCK:
            super().unwrap()


class _ForkSafeContext(ssl.SSLContext):
    """Also makes asyncio's TLS connections fork-safe."""

    sslobject_class = _ForkSafeObject

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        with FORK_LOCK:
            return super().wrap_bio(*args, **options)


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (``HTTPS_PROXY``, ``NO_PROXY``, …)."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
