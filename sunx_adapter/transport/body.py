"""Reading of a body within bounds: nothing is kept beyond the cap, however it is compressed."""

import zlib
from typing import Final

MAX_RESPONSE_BYTES: Final = 8 * 1024 * 1024
ACCEPT_ENCODING: Final = "gzip"

_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32


class BodyReader:
    """Collects a body, decompressing it, and tells when there is nothing more to read it for.

    Args:
        content_encoding: the header's value.
        limit: the largest body, in bytes after decompression.
    """

    def __init__(self, content_encoding: str, limit: int) -> None:
        encoding = content_encoding.strip().lower()
        self._inflate = (
            zlib.decompressobj(_ZLIB_OR_GZIP) if encoding in ("gzip", "x-gzip", "deflate") else None
        )
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0
        self.defect: str | None = None
        if self._inflate is None and encoding not in ("", "identity"):
            self.defect = f"the answer is encoded as {encoding[:40]!r}, which was not asked for"

    def feed(self, chunk: bytes) -> bool:
        """Take in a chunk; false once the body is known to be unreadable."""
        if self.defect is None:
            room = self._limit - self._length + 1
            if self._inflate is not None:
                try:
                    chunk = self._inflate.decompress(chunk, room)
                except zlib.error:
                    self.defect = "the answer's compression is damaged"
                    return False
                if self._inflate.unused_data:
                    self.defect = "the answer has something behind its compressed body"
            self._parts.append(chunk)
            self._length += len(chunk)
            if self._length > self._limit:
                self.defect = f"the answer is larger than {self._limit} bytes"
                self._parts.clear()
        return self.defect is None

    def finish(self) -> bytes:
        """The body; what came before a defect is kept for the message."""
        if self._inflate is not None and not self._inflate.eof and self._length:
            self.defect = self.defect or "the answer's compression ends early"
        return b"".join(self._parts)
