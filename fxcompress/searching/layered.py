"""Candidates of a search by layers: judged without a rewrite, and cut with every proof once they have won."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from fxcompress.batches import Batch
from fxcompress.memory import Footprint
from fxcompress.pipeline import Pass, Pipeline
from fxcompress.program import Program
from fxcompress.searching.accuracy import Accuracy, accuracy, greedy
from fxcompress.searching.budget import Budget
from fxcompress.searching.space import Sizes, said
from fxcompress.searching.subblocks import Decisions
from fxcompress.searching.trial import Trial, laws_of
from fxcompress.searching.variant import Variant


@dataclass(frozen=True)
class Candidate:
    """Passes, with what they leave: ``figures`` of the budgets in parameters or bytes; ``scores``: known beforehand."""

    sizes: Sizes
    passes: tuple[Pass, ...]
    parameters: int
    figures: Mapping[Budget, int]
    scores: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return said(self.sizes)


@dataclass
class Bench:
    """A ``fxcompress.searching.stages.Bench``. batches: what is judged on; calibration: what decides.

    whole: the model as it is, as a candidate.
    """

    decisions: Decisions
    budgets: tuple[Budget, ...]
    whole: Candidate
    batches: Sequence[Batch]
    calibration: Sequence[Batch]

    @property
    def program(self) -> Program:
        return self.decisions.program

    @cached_property
    def _parent(self) -> list[Tensor]:
        return greedy(self.program, self.batches)

    def original(self, advance: Callable[[], None]) -> Trial:
        return _trial(self.whole, accuracy(self.program, self.batches, self._parent, advance))

    def try_out(self, candidate: Candidate, advance: Callable[[], None]) -> Trial:
        small = Variant(self.program, self.decisions.together(candidate.passes))
        return _trial(candidate, accuracy(small, self.batches, self._parent, advance))

    def passes(self, candidate: Candidate) -> tuple[Pass, ...]:
        return candidate.passes

    def prove(self, candidate: Candidate) -> dict[str, Any]:
        pipeline = Pipeline(candidate.passes, statistics=self.decisions.statistics)
        small = pipeline.run(self.program, self.calibration)
        assert Footprint.of(small).parameters == candidate.parameters, "what is counted is what is left"
        return {"laws": laws_of(pipeline.records), "why": ""}


def _trial(candidate: Candidate, found: Accuracy) -> Trial:
    figures = {str(budget): float(value) for budget, value in candidate.figures.items()}
    scores = {**candidate.scores, "accuracy": found.accuracy, "agreement": found.agreement, "mean": found.mean}
    finite = math.isfinite(found.loss)
    why = "" if finite else "its loss is not finite"
    loss = found.loss if finite else None
    return Trial(candidate.sizes, candidate.parameters, figures, loss, why=why, scores=scores)
