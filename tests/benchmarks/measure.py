"""What all benchmarks share: rounds in turn, medians, one form for a result."""

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

KEYS = {"apiKey": "benchmark-access-key", "secret": "benchmark-secret"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the result: medians over the rounds, as a rule microseconds per call.

    Attributes:
        what: what was measured.
        peer: whom against.
        ours: our figure.
        theirs: the peer's.
        goal: the largest ratio (or difference, where ``difference`` is set) that is good.
        unit: of both figures.
        difference: whether ours − theirs is what counts, instead of ours / theirs.
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
        """The ratio, or the difference."""
        return self.ours - self.theirs if self.difference else self.ours / self.theirs

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.result <= self.goal


def in_turn(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float]:
    """The medians of both, measured in turn; one round before warms up."""
    figures = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return _medians(figures)


async def in_turn_async(
    rounds: int, ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]]
) -> tuple[float, float]:
    """The same for coroutines."""
    figures = [(await ours(), await theirs()) for _ in range(rounds + 1)][1:]
    return _medians(figures)


def _medians(figures: list[tuple[float, float]]) -> tuple[float, float]:
    ours, theirs = zip(*figures, strict=True)
    return statistics.median(ours), statistics.median(theirs)
