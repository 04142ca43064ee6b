"""Faults, and how they are written.

::

    KIND[=PARAMETER][@PROBABILITY]

    reset                 every request's connection is reset
    silence@0.05          a twentieth of all requests is never answered
    code=1004@0.1         a tenth is refused with the venue's code 1004
    clock=-7200           the venue's clock is two hours slow

The kinds are in :mod:`~sunx_adapter.sandbox.fault_table`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sunx_adapter.sandbox.answers import HttpAnswer
from sunx_adapter.sandbox.fault_table import EVERY_PATH, FAULT_RULES, Exchange, FaultRule, number

_GRAMMAR: Final = re.compile(
    r"(?P<kind>[^=@]*)(=(?P<parameter>.*?))?(@(?P<probability>[^@]*))?", re.DOTALL
)


class FaultError(ValueError):
    """A fault is invalid; the message says why, or lists the valid ones."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. As text it is ``KIND[=PARAMETER][@PROBABILITY]``.

    Args:
        kind: the name of a kind, see :func:`fault_kinds`.
        parameter: what follows ``=``, as text or number; it is kept as text.
        probability: the share of requests, 0 to 1. Without one: all that other faults leave,
            which several such faults share evenly.
        path: the one path that it is for, or ``"*"`` for every path; without: the kind's own
            (the balance of both variants; every path for ``clock`` and ``maintenance``).

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
        self._check_parameter()
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise FaultError(f"{self.kind}: the probability must be a number from 0 to 1")
        if self.path is not None and not (self.path == EVERY_PATH or self.path.startswith("/")):
            raise FaultError(f"{self.kind}: the path must begin with / or be {EVERY_PATH}")

    def _check_parameter(self) -> None:
        parameter, given = self.rule.parameter, self.parameter
        if parameter is None:
            if given is not None:
                raise FaultError(f"{self.kind}={given}: {self.kind} has no parameter")
        elif given is None:
            if parameter.default is None:
                raise FaultError(
                    f"{self.rule.usage}: {parameter.name} must be {parameter.expected}"
                )
        elif not parameter.fits(str(given)):
            raise FaultError(f"{self.kind}={given}: {parameter.name} must be {parameter.expected}")

    def __str__(self) -> str:
        parameter = "" if self.parameter is None else f"={self.parameter}"
        probability = "" if self.probability is None else f"@{self.probability}"
        return f"{self.kind}{parameter}{probability}"

    @property
    def rule(self) -> FaultRule:
        """Its kind."""
        return FAULT_RULES[self.kind]

    def changed(self, exchange: Exchange) -> HttpAnswer | None:
        """What a request is answered with this fault; ``None`` if it cannot get this fault."""
        right = exchange.answer
        if self.rule.accepted_only and not right.accepted:
            return None
        if self.rule.answer is None:
            return right
        answer = self.rule.answer(exchange, self.value)
        return answer and replace(answer, uid=right.uid)

    @property
    def value(self) -> str:
        """The parameter, or the kind's default; empty where there is neither."""
        if self.parameter is not None:
            return str(self.parameter)
        return (self.rule.parameter and self.rule.parameter.default) or ""

    @property
    def paths(self) -> frozenset[str]:
        """The requests that it is for; ``"*"`` among them stands for all."""
        return self.rule.paths if self.path is None else frozenset({self.path})

    def is_for(self, path: str) -> bool:
        """Whether requests of that path can get it."""
        return path in self.paths or EVERY_PATH in self.paths


def fault_kinds() -> tuple[FaultRule, ...]:
    """All kinds, for help texts: see :attr:`FaultRule.usage` and :attr:`FaultRule.sentence`."""
    return tuple(FAULT_RULES.values())


def parse_fault(text: str) -> Fault:
    """The fault that ``KIND[=PARAMETER][@PROBABILITY]`` means.

    What follows the last ``@`` is the probability, so a parameter with an ``@`` in it needs one
    behind: ``redirect=http://user@host@1``.

    Raises:
        FaultError: the text is no fault; the message says why, or lists the valid ones.
    """
    parts = _GRAMMAR.fullmatch(text)
    if parts is None:
        raise _unknown(text)
    kind, parameter, probability = parts["kind"], parts["parameter"], parts["probability"]
    return Fault(kind, parameter, None if probability is None else number(probability))


def as_faults(faults: Iterable[Fault | str]) -> tuple[Fault, ...]:
    """Faults of faults and texts; a single one may stand for itself.

    Raises:
        FaultError: a text is no fault.
    """
    several = [faults] if isinstance(faults, Fault | str) else faults
    return tuple(fault if isinstance(fault, Fault) else parse_fault(fault) for fault in several)


def _unknown(kind: str) -> FaultError:
    known = ", ".join(rule.usage for rule in fault_kinds())
    name, colon, rest = kind.partition(":")
    hint = f" (is {name}={rest} meant?)" if colon and name in FAULT_RULES else ""
    return FaultError(
        f"no fault {kind!r}{hint}; there are: {known}; each may have a share, as reset@0.2"
    )
