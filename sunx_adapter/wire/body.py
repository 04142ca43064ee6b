"""Decompresses bodies up to a size limit."""

import zlib
from typing import Final

from sunx_adapter.text import shortened

ACCEPT_ENCODING: Final = "gzip"
MAX_RESPONSE_BYTES: Final = 1024 * 1024
"""The size of the largest answer after decompression; 200 currencies are about 100 kB."""

_MAX_QUOTED: Final = 40
_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32


def too_large_text(limit: int) -> str:
    """The message for an answer larger than the limit."""
    return f"the answer is larger than {limit} bytes"


def decompressed(body: bytes, content_encoding: str, limit: int) -> tuple[bytes, str | None]:
    """The decompressed body, and its defect or ``None``.

    Args:
        body: the received body.
        content_encoding: the header's value.
        limit: the size of the largest accepted body, in bytes after decompression.
    """
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return (body, None) if len(body) <= limit else (b"", too_large_text(limit))
    if encoding not in ("gzip", "x-gzip", "deflate"):
        quoted = shortened(content_encoding.strip(), _MAX_QUOTED)
        return body, f"the answer is encoded as {quoted!r}, which was not requested"
    if not body:
        return body, None
    inflate = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error:
        return b"", "the answer's compression is damaged"
    if len(plain) > limit:
        return b"", too_large_text(limit)
    if inflate.unused_data:
        return plain, "the answer has bytes after its compressed body"
    return plain, None if inflate.eof else "the answer's compression ends early"
