"""What a misspelt name was probably meant to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

# Below, hosts' own names are taken for misspelt ones: "defaultSettle" for "defaultType".
_LIKENESS = 0.8


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` looks like; None if it looks like none, or is one itself.

    Case does not count, except that a name that is known exactly is no misspelling.
    """
    names = list(known)
    if name in names:
        return None
    import difflib  # noqa: PLC0415 - only a misspelling needs it

    spellings = {each.casefold(): each for each in reversed(names)}
    found = difflib.get_close_matches(name.casefold(), spellings, n=1, cutoff=_LIKENESS)
    return spellings[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: ``"; did you mean 'free'?"``, or ``""`` if no name is close."""
    found = closest(name, known)
    return f"; did you mean {found!r}?" if found else ""
