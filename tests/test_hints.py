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
    """A name that is nearly a known one, or is written in another case, has a hint."""
    assert closest(name, KNOWN) == meant
    assert did_you_mean(name, KNOWN) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["strategy", "x", "", "broker_id", "free"])
def test_a_name_that_resembles_nothing_known_has_no_hint(name: str) -> None:
    """An unlike name, and a name that is known exactly, have no hint."""
    assert closest(name, KNOWN) is None
    assert not did_you_mean(name, KNOWN)
