"""What a model may cost: a bound on one figure, at the load at which it is counted or measured.

    parameters<=4.5B
    non_embedding<=3.7B
    weights<=8GB at weights=int4
    bytes<=24GB at batch=8, context=32768, cache=fp8
    latency<=20ms at batch=1, prompt=512, new=128
    latency<=0.8x at batch=1, prompt=512, new=128
    throughput>=1000 at batch=16, prompt=512, new=128

Parameters, weights and bytes follow from sizes (``fxcompress.memory``). Latency, the seconds from prompts to the last
new token, and throughput, the new tokens of the whole batch per second, are measured; with an x, as parts of what the
original has, which takes its turns beside the candidate. Another job on the machine hardly moves these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.memory import AS_IT_IS, Footprint, Precision
from fxcompress.searching import budget_text

PRECISIONS = tuple(part.name for part in fields(Precision))
CONDITIONS: dict[str, tuple[str, ...]] = {  # what a figure depends on
    "parameters": (),
    "non_embedding": (),  # parameters without those of embedding and head
    "weights": ("weights",),
    "bytes": ("batch", "context", *PRECISIONS),
    "latency": ("batch", "prompt", "new"),
    "throughput": ("batch", "prompt", "new"),
}
_NEEDED = {"bytes": ("context",), "latency": ("prompt", "new"), "throughput": ("prompt", "new")}
_LEAST = {"batch": 1, "context": 0, "prompt": 1, "new": 0}
_MOST = 1 << 40  # sequences or tokens


@dataclass(frozen=True)
class Budget:
    """One bound. ``limit`` is in parameters, bytes, seconds or tokens per second; ``at_least`` where it is a lower one.

    relative: of a measured figure, the limit is a multiple of what the original has.
    batch: sequences at once; context: tokens of each in the cache; prompt, new: tokens read and generated for each.
    Raises CompressError for bounds that mean nothing.
    """

    figure: str
    limit: float
    at_least: bool = False
    batch: int = 1
    context: int = 0
    prompt: int = 0
    new: int = 0
    precision: Precision = AS_IT_IS
    relative: bool = False

    def __post_init__(self) -> None:
        if self.figure not in CONDITIONS:
            raise CompressError(f"there is no budget in {quoted(self.figure)}; there are {', '.join(CONDITIONS)}")
        if self.relative and not self.is_measured:
            raise CompressError(f"{self.figure} is no multiple: parts of the original are for latency and throughput")
        if not 0 < self.limit < math.inf:
            raise CompressError(f"{self.figure}: the limit {self.limit} is not a positive number")
        for name in set(CONDITIONS[self.figure]) & _LEAST.keys():
            least = 1 if (name, self.figure) == ("new", "throughput") else _LEAST[name]
            if not least <= getattr(self, name) <= _MOST:
                raise CompressError(f"{self.figure}: {name}={getattr(self, name)} has to be at least {least}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``bytes<=24GB at batch=8, context=32768``. Raises CompressError for anything else."""
        figure, at_least, number, unit, conditions = budget_text.split(text)
        if figure not in CONDITIONS:
            raise CompressError(f"there is no budget in {quoted(figure)}; there are {', '.join(CONDITIONS)}")
        relative = unit == budget_text.TIMES and figure in ("latency", "throughput")
        limit = float(number) if relative else budget_text.read_limit(figure, number, unit)
        known = CONDITIONS[figure]
        values = budget_text.read_conditions(figure, conditions, known, [n for n in known if n in PRECISIONS])
        missing = [name for name in _NEEDED.get(figure, ()) if name not in values]
        if missing:
            raise CompressError(f"{quoted(text)} has to say at which {missing[0]}: 'at {missing[0]}=512'")
        bits = {name: values.pop(name) for name in PRECISIONS if name in values}
        return cls(figure, limit, at_least, precision=Precision(**bits), relative=relative, **values)

    @property
    def is_measured(self) -> bool:
        return self.figure in ("latency", "throughput")

    @property
    def conditions(self) -> dict[str, Any]:
        """What the figure depends on, as far as it is said."""
        values = {**vars(self), **vars(self.precision)}
        return {name: values[name] for name in CONDITIONS[self.figure] if values[name] is not None}

    def value(self, count: Footprint) -> Any:
        """The figure of a program with this footprint; figures, where its counts are arrays."""
        assert not self.is_measured, "a footprint has no seconds"
        if self.figure in ("parameters", "non_embedding"):
            return getattr(count, self.figure)
        found = count.memory(self.batch, self.context, self.precision)
        return found.weights if self.figure == "weights" else found.total

    def of_seconds(self, seconds: float, original: float) -> float:
        """The figure of a model that took so many seconds, next to what the original took."""
        if self.figure == "latency":
            return seconds / original if self.relative else seconds
        return original / seconds if self.relative else self.batch * self.new / seconds

    def allows(self, value: Any) -> Any:
        """Does a figure keep the bound? For each, where there are several."""
        return value >= self.limit if self.at_least else value <= self.limit

    def excess(self, value: Any) -> Any:
        """How far a figure is on the wrong side, as a part of the limit; negative on the right one."""
        return (self.limit - value) / self.limit if self.at_least else (value - self.limit) / self.limit

    def said(self, value: float) -> str:
        """A value of the figure with its unit, in three digits."""
        return f"{value:.3g}{budget_text.TIMES}" if self.relative else budget_text.said(self.figure, value)

    def __str__(self) -> str:
        given = {name: value for name, value in self.conditions.items() if (name, value) != ("batch", 1)}
        return budget_text.write(self.figure, self.at_least, self.limit, given, self.relative)


def budgets_of(given: Any) -> tuple[Budget, ...]:
    """One budget or several, as text or objects, checked against each other. Raises CompressError."""
    several = [given] if isinstance(given, str | Budget) else given
    if not isinstance(several, Iterable) or isinstance(several, Mapping):
        raise CompressError(f"budget={quoted(given)} is none: write 'parameters<=4.5B', or several in a list")
    budgets = tuple(one if isinstance(one, Budget) else Budget.parse(one) for one in several)
    if not budgets:
        raise CompressError("no budget is given: write 'parameters<=4.5B', or several in a list")
    _refuse_contradictions(budgets)
    return budgets


def _refuse_contradictions(budgets: Sequence[Budget]) -> None:
    for i, one in enumerate(budgets):
        for other in budgets[:i]:
            if (one.figure, one.relative, one.conditions) != (other.figure, other.relative, other.conditions):
                continue
            if one.at_least == other.at_least:
                raise CompressError(f"the budget has {other} and {one}: keep one of them")
            upper, lower = (other, one) if one.at_least else (one, other)
            if upper.limit < lower.limit:
                raise CompressError(f"the budget contradicts itself: {upper} and {lower}")
