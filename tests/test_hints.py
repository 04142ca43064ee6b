"""Hints for misspelt names."""

from __future__ import annotations

import pytest

from sunx_adapter.hints import closest, did_you_mean

KNOWN = ["apiKey", "timeout", "free", "rateLimitStorage", "sunx", "htxfutures"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("apikey", "apiKey"),
        ("tiemout", "timeout"),
        ("fre", "free"),
        ("rateLimitStorag", "rateLimitStorage"),
        ("sunxx", "sunx"),
        ("HTXFUTURES", "htxfutures"),
    ],
)
def test_a_misspelling_is_recognised(name: str, meant: str) -> None:
    """A misspelling, or another case, of a known name gets a hint."""
    assert closest(name, KNOWN) == meant
    assert did_you_mean(name, KNOWN) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["strategy", "x", "", "broker_id", "free"])
def test_other_names_have_no_hint(name: str) -> None:
    """A name unlike any known one, or one that is correct, gets no hint."""
    assert closest(name, KNOWN) is None
    assert not did_you_mean(name, KNOWN)
