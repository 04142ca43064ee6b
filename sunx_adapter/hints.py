"""Suggestions for misspelt names: did you mean … ?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

# With a lower value, settings of hosts look misspelt: "defaultSettle" like "defaultType".
_MIN_SIMILARITY = 0.8


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to ``name``, ignoring case.

    None if no known name is similar, or if ``name`` is itself known.
    """
    names = list(known)
    if name in names:
        return None
    import difflib  # noqa: PLC0415 - only a misspelling needs it

    spellings = {each.casefold(): each for each in reversed(names)}
    found = difflib.get_close_matches(name.casefold(), spellings, n=1, cutoff=_MIN_SIMILARITY)
    return spellings[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: ``"; did you mean 'free'?"``, or ``""`` if no name is close."""
    found = closest(name, known)
    return f"; did you mean {found!r}?" if found else ""
