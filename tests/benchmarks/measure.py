"""Shared by all benchmarks: alternating rounds, medians, one form of a result."""

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

KEYS = {"apiKey": "benchmark-access-key", "secret": "benchmark-secret"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the result: medians over the rounds, usually microseconds per call.

    Attributes:
        what: what was measured.
        peer: what it was compared with.
        ours: our figure.
        theirs: the peer's figure.
        goal: the largest good ratio (or difference, if ``difference`` is set).
        unit: unit of both figures.
        difference: whether the result is ours − theirs instead of ours / theirs.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    goal: float
    unit: str = "µs"
    difference: bool = False

    @property
    def result(self) -> float:
        """Return the ratio or the difference."""
        return self.ours - self.theirs if self.difference else self.ours / self.theirs

    @property
    def reached(self) -> bool:
        """Return whether the goal is reached."""
        return self.result <= self.goal


def alternate(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float]:
    """Measure both in alternating rounds, after one warm-up round; return the medians."""
    figures = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return _medians(figures)


async def alternate_async(
    rounds: int, ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]]
) -> tuple[float, float]:
    """Do the same for coroutines."""
    figures = [(await ours(), await theirs()) for _ in range(rounds + 1)][1:]
    return _medians(figures)


def _medians(figures: list[tuple[float, float]]) -> tuple[float, float]:
    ours, theirs = zip(*figures, strict=True)
    return statistics.median(ours), statistics.median(theirs)
