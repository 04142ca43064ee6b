"""Which fault a request gets: a schedule first, then a draw from a seeded generator. No I/O.

Each request takes the first step of the schedule that is for its path. Where there is none, and
standing faults are for its path, one number is drawn: so the same seed gives the same faults to
the same order of requests.
"""

import random
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sunx_adapter.sandbox.faults import Fault, FaultError, as_faults

_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Draw:
    """What a request gets.

    Attributes:
        fault: ``None`` if nothing is to go wrong but the clock.
        clock: why the clock is off, ``None`` if it is not.
        clock_seconds: how far the venue's clock is ahead.
    """

    fault: Fault | None
    clock: Fault | None
    clock_seconds: float


class FaultPlan:
    """The faults of a sandbox. Safe to use from any thread.

    Args:
        faults: the standing ones.
        seed: of the draws; ``None`` draws differently each time.

    Raises:
        FaultError: a text is no fault, or probabilities add up to more than 1.
    """

    def __init__(self, faults: Iterable[Fault | str] = (), seed: int | None = None) -> None:
        self._fault_lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 - no secret is made of it
        self._standing = _checked(faults)
        self._steps: deque[Fault] = deque()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The standing faults, without those scheduled."""
        return self._standing

    @property
    def scheduled(self) -> tuple[Fault, ...]:
        """The steps of the schedule that no request has used up yet."""
        with self._fault_lock:
            return tuple(self._steps)

    def set_faults(self, faults: Iterable[Fault | str], seed: int | None = None) -> None:
        """Put other standing faults in place, for the requests that come from now on.

        Args:
            faults: as for the constructor.
            seed: starts the draws anew.

        Raises:
            FaultError: a fault is invalid, or probabilities add up to more than 1; then nothing
                changes.
        """
        standing = _checked(faults)
        with self._fault_lock:
            self._standing = standing
            if seed is not None:
                self._random.seed(seed)

    def schedule(self, steps: Iterable[Fault | str]) -> None:
        """Add steps to the schedule: each request uses up the first that is for its path.

        ``"ok"`` is a right answer. When no step is left, the standing faults count again.

        Args:
            steps: faults without a probability, or their texts: ``["reset", "ok", "code=1004"]``.

        Raises:
            FaultError: a step is invalid; then none is added.
        """
        added = as_faults(steps)
        for step in added:
            if step.probability is not None:
                raise FaultError(f"{step}: a step of a schedule has no probability")
        with self._fault_lock:
            self._steps.extend(added)

    def clear_faults(self) -> None:
        """End all faults, standing and scheduled, for the requests that come from now on."""
        with self._fault_lock:
            self._standing = ()
            self._steps.clear()

    def draw(self, path: str) -> Draw:
        """What a request of that path gets; a step of the schedule is used up by it."""
        with self._fault_lock:
            clocks = self._clocks(path)
            fault = self._next_step(path) or self._drawn(path)
        if fault is not None and fault.kind == "clock":
            clocks = [fault]
        if fault is not None and fault.kind in {"ok", "clock"}:
            fault = None
        return Draw(fault, clocks[0] if clocks else None, _seconds(clocks))

    def clock_seconds(self, path: str) -> float:
        """How far the clock is always ahead for that path, whatever is drawn."""
        return _seconds(self._clocks(path))

    def _clocks(self, path: str) -> list[Fault]:
        # A clock that is off goes with every request, and with any other fault.
        return [fault for fault in self._standing if _is_always(fault) and fault.is_for(path)]

    def _next_step(self, path: str) -> Fault | None:
        step = next((step for step in self._steps if step.is_for(path)), None)
        if step is not None:
            self._steps.remove(step)
        return step

    def _drawn(self, path: str) -> Fault | None:
        faults = [f for f in self._standing if f.is_for(path) and not _is_always(f)]
        if not faults:
            return None
        left = max(0.0, 1.0 - _total(faults))
        without = sum(fault.probability is None for fault in faults)
        weights = [left / without if f.probability is None else f.probability for f in faults]
        nothing = 0.0 if without else left
        return self._random.choices([*faults, None], [*weights, nothing])[0]


def _is_always(fault: Fault) -> bool:
    return fault.kind == "clock" and fault.probability is None


def _seconds(clocks: Iterable[Fault]) -> float:
    return sum(float(clock.value) for clock in clocks)


def _total(faults: Iterable[Fault]) -> float:
    return sum(fault.probability or 0.0 for fault in faults)


def _checked(faults: Iterable[Fault | str]) -> tuple[Fault, ...]:
    checked = as_faults(faults)
    for path in {path for fault in checked for path in fault.paths}:
        total = _total(fault for fault in checked if fault.is_for(path))
        if total > 1 + _ROUNDING:
            raise FaultError(f"the probabilities of the faults add up to {total:g}, more than 1")
    return checked
