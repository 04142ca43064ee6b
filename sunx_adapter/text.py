"""Makes text from outside printable and short."""

from typing import Final

CUT: Final = "…"
"""Marks the end of a cut text. Redaction looks for the beginning of a secret before this mark."""


def shortened(text: str, length: int) -> str:
    """The text, cut if it is longer than ``length``."""
    return text if len(text) <= length else text[:length] + CUT


def printable(text: str) -> str:
    """The text without line breaks and control characters, which would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)
