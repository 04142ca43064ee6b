"""What commands print, and how: errors in plain lines, without secrets and control characters."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from sunx_adapter.text import printable

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(Exception):
    """A mistake of the user's; the message says in a line or two what to do."""


@cache
def out() -> Console:
    """Standard output. Like everything heavy, rich is imported when something is drawn."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False)


@cache
def err() -> Console:
    """Standard error."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)


def escape(text: str) -> str:
    """The text as markup that shows it unchanged."""
    from rich.markup import escape  # noqa: PLC0415

    return escape(text)


def print_error(text: str) -> None:
    """Print an error to standard error. Nothing breaks its lines, so that commands stay whole."""
    lines = "\n".join(map(printable, text.splitlines()))
    err().print(f"[red]error:[/] {escape(lines)}", soft_wrap=True)


def print_json(data: Any) -> None:
    """Print indented JSON. What other plugins give may not be JSON's: it becomes text."""
    import json  # noqa: PLC0415

    print(json.dumps(data, indent=2, default=str))  # noqa: T201


def explained(error: Exception) -> str:
    """An exception for people: its class, unless the message says it all, and its message."""
    from sunx_adapter.host import HostError  # noqa: PLC0415

    # The exceptions of other exchanges may quote a signed address.
    text = redacted(str(error))
    says_it_all = isinstance(error, HostError | UsageError)
    return text if says_it_all else f"{type(error).__name__}: {text}"


def os_error_text(error: Exception) -> str:
    """An exception's message, of an ``OSError`` without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def redacted(text: str) -> str:
    """The text, line by line, without secrets and control characters."""
    from sunx_adapter.exchange.redaction import cleaned  # noqa: PLC0415 - for a quick start

    return "\n".join(map(cleaned, text.splitlines()))


def log_to_stderr(name: str) -> None:
    """Show everything that this package's logger of that name reports."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger(name).setLevel(logging.DEBUG)
