from tests.fuzz import fuzz


def test_mutated_answers() -> None:
    """Each of 20,000 mutated answers gives an exception of the table or the right balance."""
    counted = fuzz(20_000, seed=20251116)
    # The inputs include both kinds.
    assert counted[True] > 1000
    assert counted[False] > 1000


def test_mutated_http() -> None:
    """Each of 20,000 mutated HTTP answers is refused or read as a simple parser reads it."""
    counted = fuzz(20_000, seed=20261121, kind="http")
    assert counted[True] > 1000
    assert counted[False] > 1000


def test_mutated_push_messages() -> None:
    """Each of 10,000 mutated messages is read or raises BadResponse."""
    counted = fuzz(10_000, seed=20261121, kind="push")
    assert counted[True] > 100
    assert counted[False] > 1000
