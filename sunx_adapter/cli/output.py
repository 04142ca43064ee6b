"""Output of all commands: errors, JSON and logs, without secrets and control characters."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from sunx_adapter.text import printable

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(Exception):
    """A user's mistake; the message says in a line or two what to do."""


@cache
def out() -> Console:
    """Standard output. Rich is slow to import, so this is done only when something is printed."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False)


@cache
def err() -> Console:
    """Standard error."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)


def escape(text: str) -> str:
    """The text escaped for rich's markup."""
    from rich.markup import escape  # noqa: PLC0415

    return escape(text)


def print_error(text: str) -> None:
    """Print an error to standard error, without wrapping lines, so that commands can be copied."""
    lines = "\n".join(map(printable, text.splitlines()))
    err().print(f"[red]error:[/] {escape(lines)}", soft_wrap=True)


def print_json(data: Any) -> None:
    """Print indented JSON. Values of other plugins that are not JSON become text."""
    import json  # noqa: PLC0415

    print(json.dumps(data, indent=2, default=str))  # noqa: T201


def error_text(error: Exception) -> str:
    """An exception's class and message; only the message if that is clear enough."""
    from sunx_adapter.host import HostError  # noqa: PLC0415

    # The exceptions of other exchanges may quote a signed URL.
    text = redacted(str(error))
    is_clear = isinstance(error, HostError | UsageError)
    return text if is_clear else f"{type(error).__name__}: {text}"


def os_error_text(error: Exception) -> str:
    """An exception's message; for an ``OSError`` without the error number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def redacted(text: str) -> str:
    """The text, line by line, without secrets and control characters."""
    from sunx_adapter.exchange.redaction import cleaned  # noqa: PLC0415 - slow

    return "\n".join(map(cleaned, text.splitlines()))


def log_to_stderr(name: str) -> None:
    """Log to standard error everything from one of this package's loggers."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger(name).setLevel(logging.DEBUG)
