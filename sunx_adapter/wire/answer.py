"""Reads the answer to one GET from the received bytes. No sockets, no clock.

httptools (llhttp, the parser of Node.js) parses the bytes. This module makes sure that an answer
belongs to its request: any other bytes make the request fail or end the connection.
"""

from typing import TYPE_CHECKING, Final

import httptools

from sunx_adapter.wire.body import decompressed, too_large_text

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FRAMING_BYTES: Final = 65_536
"""The size of the longest head, and of the longest framing between two pieces of a body."""

_STATUSES: Final = range(200, 600)
_INTERIM: Final = range(100, 200)
_END_OF_HEAD: Final = b"\r\n\r\n"


class WireError(OSError):
    """The connection failed, or the bytes are not an answer. Another try may succeed."""


class DeclinedError(Exception):
    """The peer answered the handshake with HTTP instead of opening a WebSocket.

    Attributes:
        status: the HTTP status.
        location: the target of a redirect; ``None`` if the answer is not a redirect.
    """

    def __init__(self, reason: str, status: int, location: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.location = location


class RawAnswer:
    """An answer whose body is not decompressed. Feed it bytes until it has ended.

    Args:
        limit: the size of the largest accepted body, in bytes before decompression.

    Attributes:
        status: the status of the final head; 0 until that head has arrived.
        headers: the headers of the final head, with names in lower case and repeated ones joined.
        raw_headers: the same headers, unchanged.
        ended: whether the answer is complete.
        reusable: whether the connection can be used again: the answer is complete, no bytes follow
            it, and neither side is about to close.
        too_large: whether the body is larger than the limit; then it is dropped.
    """

    def __init__(self, limit: int) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.ended = False
        self.reusable = False
        self.too_large = False
        self._limit = limit
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._length = 0
        self._framing = 0
        self._last = b""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        """The body, not decompressed."""
        return b"".join(self._body)

    def content(self) -> tuple[bytes, str | None]:
        """The decompressed body, and its defect or ``None``."""
        if self.too_large:
            return b"", too_large_text(self._limit)
        return decompressed(self.body, self.headers.get("content-encoding", ""), self._limit)

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            WireError: they are not an HTTP answer, or its head is too long.
        """
        assert self._parser is not None, "the answer has ended"
        self._framing += len(data)
        self._last = (self._last + data)[-5:] if len(data) < 5 else data  # noqa: PLR2004
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self.ended:
                raise WireError("the answer changes the protocol") from None
        except httptools.HttpParserError as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, Exception):
                raise cause from None  # Ctrl-C, in one of the methods below
            self.reusable = False
            if not self.ended:
                reason = cause if isinstance(cause, WireError) else error
                raise WireError(f"the answer is not HTTP: {reason}") from None
        if self.ended:
            self._parser = None  # it refers to this object
            self.reusable = self.reusable and self._ends_here()
        elif self._framing > MAX_FRAMING_BYTES:
            raise WireError("the answer's head is too long")

    def end(self) -> None:
        """The peer closed the connection.

        Raises:
            WireError: the answer is incomplete.
        """
        self._parser = None
        self.reusable = False
        if not self.status or self._is_chunked() or "content-length" in self.headers:
            part = "in the middle of" if self.status else "before"
            raise WireError(f"the connection was closed {part} the answer")
        self.ended = True

    def _is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").strip().lower().endswith("chunked")

    def _ends_here(self) -> bool:
        # llhttp skips line feeds between messages without a callback. So check that the last bytes
        # are part of the answer: the body, or the empty line that ends the head or the chunks.
        piece = self._body[-1] if self._body and not self._is_chunked() else b""
        if piece.strip(b"\r\n"):
            return self._last.endswith(piece[-len(self._last) :])
        return self._last.endswith(_END_OF_HEAD) and self._last[-5:-4] not in (b"\r", b"\n")

    # -- called by httptools ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; a second one belongs to no request."""
        if self.ended:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are ignored."""
        if not self.status:
            self.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is complete; after an interim one another head follows."""
        if self.ended or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status in _INTERIM:
            self.raw_headers.clear()
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.raw_headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.begin(status, headers)

    def begin(self, status: int, headers: "Mapping[str, str]") -> None:
        """The final head has arrived.

        Raises:
            WireError: the status is invalid.
        """
        if status not in _STATUSES:
            raise WireError(f"the answer has the status {status}")
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.ended:
            return
        self._framing = 0
        self._length += len(data)
        self._body.append(data)
        if self._length > self._limit:
            self._body.clear()
            self.ended = self.too_large = True

    def on_message_complete(self) -> None:
        """An answer is complete."""
        if self.status and not self.ended and self._parser is not None:
            self.ended = True
            self.reusable = self._parser.should_keep_alive()
