"""The settings of connections: certificates and proxies."""

import os
import ssl
import urllib.request
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import certifi

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
        """A context that verifies certificates and host names; equal settings share it."""
        # In a forked child, another thread of the parent may have locked the parent's context.
        return _tls_context(self.cafile, self.trust_env, os.getpid())


@lru_cache(maxsize=64)
def _tls_context(cafile: str | None, trust_env: bool, _process: int) -> ssl.SSLContext:
    if trust_env:
        return ssl.create_default_context(cafile=cafile)
    # Not create_default_context(), which writes the session's keys to $SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile or certifi.where())
    return context


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (``HTTPS_PROXY``, ``NO_PROXY``, …)."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
