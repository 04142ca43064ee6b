"""Parses faults and decides which request gets which fault. No I/O.

Each request takes the first scheduled step for its path. If there is none, and there are permanent
faults for its path, exactly one random number is drawn. So the same seed gives the same faults to
the same sequence of requests.
"""

import math
import random
import re
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sunx_adapter.sandbox.answers import SUCCESS, HttpRequest, SandboxAnswer
from sunx_adapter.sandbox.delivery import Delivery
from sunx_adapter.sandbox.fault_table import EVERY_PATH, FAULT_RULES, FaultError, FaultRule

_GRAMMAR: Final = re.compile(r"([^=@]*)(?:=(.*?))?(?:@([^@]*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. As text it is ``KIND[=PARAMETER][@PROBABILITY]``, like ``code=1004@0.1``.

    Args:
        kind: the name of a kind, see :func:`fault_kinds`.
        parameter: the value after ``=``, as text or number; it is stored as text.
        probability: the share of requests, 0 to 1. Default: all requests that other faults leave;
            several such faults share them evenly.
        path: the path of the requests that it applies to, or ``"*"`` for every path. Default: the
            kind's paths (both balances; every path for ``clock`` and ``maintenance``).

    Raises:
        FaultError: there is no such kind, or a value is invalid.
    """

    kind: str
    parameter: str | float | None = None
    probability: float | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_RULES:
            raise _unknown(self.kind)
        if self.parameter is not None:
            object.__setattr__(self, "parameter", str(self.parameter))
        self.rule.value(self.parameter)
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise FaultError(f"{self.kind}: the probability must be a number from 0 to 1")
        if self.path is not None and not (self.path == EVERY_PATH or self.path.startswith("/")):
            raise FaultError(f"{self.kind}: the path must begin with / or be {EVERY_PATH}")

    def __str__(self) -> str:
        parameter = "" if self.parameter is None else f"={self.parameter}"
        probability = "" if self.probability is None else f"@{self.probability}"
        return f"{self.kind}{parameter}{probability}"

    @property
    def rule(self) -> FaultRule:
        """Its kind."""
        return FAULT_RULES[self.kind]

    @property
    def value(self) -> Any:
        """The value of its parameter, or of the kind's default; ``None`` without a parameter."""
        return self.rule.value(self.parameter)

    @property
    def paths(self) -> frozenset[str]:
        """The paths of the requests that it applies to; ``"*"`` means every path."""
        return self.rule.paths if self.path is None else frozenset({self.path})

    def is_for(self, path: str) -> bool:
        """Whether it applies to requests for that path."""
        return path in self.paths or EVERY_PATH in self.paths

    def applied_to(self, normal: SandboxAnswer, request: HttpRequest) -> SandboxAnswer | None:
        """The answer with this fault; ``None`` if this answer cannot have it."""
        refused = self.rule.accepted_only and normal.code not in SUCCESS
        return None if refused else self.rule.answer(request, normal, self.value)

    def delivered(self, head: bytes, body: bytes) -> Delivery:
        """How the parts of an answer, or the previous and the next push message, are sent."""
        return self.rule.instead or self.rule.delivery(head, body, self.value)


def fault_kinds() -> tuple[FaultRule, ...]:
    """All kinds; for help texts see :attr:`FaultRule.usage` and :attr:`FaultRule.help`."""
    return tuple(FAULT_RULES.values())


def parse_fault(text: str) -> Fault:
    """Parse ``KIND[=PARAMETER][@PROBABILITY]``.

    The last ``@`` separates the probability. So a parameter that contains ``@`` needs a
    probability after it: ``redirect=http://user@host@1``.

    Raises:
        FaultError: the text is invalid; the message says why, or lists the valid faults.
    """
    parts = _GRAMMAR.fullmatch(text)
    if parts is None:
        raise _unknown(text)
    kind, parameter, probability = parts.groups()
    try:
        share = None if probability is None else float(probability)
    except ValueError:
        share = math.nan  # in no range
    return Fault(kind, parameter, share)


def _as_faults(faults: Iterable[Fault | str]) -> tuple[Fault, ...]:
    """Parse the texts among the faults; a single fault or text is a list of one."""
    several = [faults] if isinstance(faults, Fault | str) else faults
    return tuple(fault if isinstance(fault, Fault) else parse_fault(fault) for fault in several)


def _total(faults: Iterable[Fault]) -> float:
    return sum(fault.probability or 0.0 for fault in faults)


def _unknown(kind: str) -> FaultError:
    known = ", ".join(rule.usage for rule in fault_kinds())
    name, colon, rest = kind.partition(":")
    hint = f" (did you mean {name}={rest}?)" if colon and name in FAULT_RULES else ""
    example = "add a probability like this: reset@0.2"
    return FaultError(f"unknown fault {kind!r}{hint}; the faults are: {known}; {example}")


class Draw(NamedTuple):
    """The faults of one request: at most one that is no ``clock``, and all ``clock`` faults."""

    fault: Fault | None
    clocks: list[Fault]

    @property
    def clock_seconds(self) -> float:
        """By how many seconds the venue's clock is ahead: those of all ``clock`` faults."""
        return float(sum(clock.value for clock in self.clocks))


class FaultPlan:
    """The faults of a sandbox. Thread-safe. The arguments are those of :class:`Sandbox`."""

    def __init__(self, faults: Iterable[Fault | str] = (), seed: int | None = None) -> None:
        self._fault_lock = threading.Lock()
        self._random = random.Random()  # noqa: S311 - no secret is made of it
        self._permanent: tuple[Fault, ...] = ()
        self._steps: deque[Fault] = deque()
        self.set_faults(faults, seed)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The permanent faults, without scheduled ones."""
        return self._permanent

    @property
    def scheduled(self) -> tuple[Fault, ...]:
        """The scheduled steps that no request has taken yet."""
        with self._fault_lock:
            return tuple(self._steps)

    def set_faults(self, faults: Iterable[Fault | str], seed: int | None = None) -> None:
        """Replace the permanent faults, from now on. A seed restarts the random numbers.

        Raises:
            FaultError: a fault is invalid, or probabilities add up to more than 1; then nothing
                changes.
        """
        permanent = _as_faults(faults)
        for path in {path for fault in permanent for path in fault.paths}:
            total = _total(fault for fault in permanent if fault.is_for(path))
            if round(total, 9) > 1:
                sums = f"the probabilities of the faults add up to {total:g}"
                raise FaultError(f"{sums}, more than 1")
        with self._fault_lock:
            self._permanent = permanent
            if seed is not None:
                self._random.seed(seed)

    def schedule(self, steps: Iterable[Fault | str]) -> None:
        """Add steps to the schedule, like ``["reset", "ok", "code=1004"]``, without probabilities.

        Each request takes the first step for its path; ``"ok"`` is a normal answer. When no step is
        left, the permanent faults apply again.

        Raises:
            FaultError: a step is invalid; then none is added.
        """
        added = _as_faults(steps)
        for step in added:
            if step.probability is not None:
                raise FaultError(f"{step}: a scheduled step cannot have a probability")
        with self._fault_lock:
            self._steps.extend(added)

    def clear_faults(self) -> None:
        """Remove all permanent and scheduled faults, for all requests from now on."""
        with self._fault_lock:
            self._permanent = ()
            self._steps.clear()

    def draw(self, path: str) -> Draw:
        """Choose the faults of the next request for that path; this takes a scheduled step."""
        with self._fault_lock:
            clocks = self._clocks(path)
            fault = self._drawn(path, clocks)
        if fault.kind == "clock":
            return Draw(None, [*clocks, fault])
        return Draw(None if fault.kind == "ok" else fault, clocks)

    def clock_seconds(self, path: str) -> float:
        """By how many seconds the venue's clock is ahead in every request for that path."""
        return Draw(None, self._clocks(path)).clock_seconds

    def _clocks(self, path: str) -> list[Fault]:
        steady = (f for f in self._permanent if f.kind == "clock" and f.probability is None)
        return [fault for fault in steady if fault.is_for(path)]

    def _drawn(self, path: str, clocks: list[Fault]) -> Fault:
        for step in self._steps:
            if step.is_for(path):
                self._steps.remove(step)
                return step
        faults = [f for f in self._permanent if f.is_for(path) and f not in clocks]
        if not faults:
            return Fault("ok")
        if all(fault.probability is not None for fault in faults):
            faults.append(Fault("ok"))
        left = max(0.0, 1.0 - _total(faults)) / sum(f.probability is None for f in faults)
        weights = [left if fault.probability is None else fault.probability for fault in faults]
        return self._random.choices(faults, weights)[0]
