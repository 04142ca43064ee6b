from tests.fuzz import fuzz


def test_mutated_answers() -> None:
    """Of 20,000 mutated answers each is an exception of the table or a balance that is right."""
    counted = fuzz(20_000, seed=20251116)
    # Both must have been there for this to mean anything.
    assert counted[True] > 1000
    assert counted[False] > 1000


def test_mutated_http() -> None:
    """Of 20,000 odd HTTP answers each is refused, or read as a slow and obvious reading does."""
    counted = fuzz(20_000, seed=20261121, kind="http")
    assert counted[True] > 1000
    assert counted[False] > 1000


def test_mutated_push_messages() -> None:
    """Of 10,000 mutated messages each is a message, or a BadResponse."""
    counted = fuzz(10_000, seed=20261121, kind="push")
    assert counted[True] > 100
    assert counted[False] > 1000
