"""A candidate that is tried: cut for real, scored on the calibration, and timed where the budget asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from fxcompress.batches import Batch
from fxcompress.export.config import NotExpressible
from fxcompress.gather import gather
from fxcompress.memory import Footprint
from fxcompress.pipeline import Pass, Pipeline
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.record import Record
from fxcompress.rewrite import rewrite
from fxcompress.score import Score
from fxcompress.searching.budget import Budget
from fxcompress.searching.candidates import Candidate
from fxcompress.searching.depth import stack
from fxcompress.searching.latency import work
from fxcompress.searching.loss import zero_shot_loss
from fxcompress.searching.profile import Profile
from fxcompress.searching.space import Sizes, Space, said
from fxcompress.source import Opened
from fxcompress.statistics import Statistics
from fxcompress.streamed import META
from fxcompress.timing import Work, compare


@dataclass(frozen=True)
class Trial:
    """What was found out about a model of these sizes.

    figures: by the text of each budget, in its unit. loss: nats a token, None where it is not known. ratios: of seconds
    to the original's, by the text of the budget that they were measured for. scores: what else is known of how well it
    predicts. why: it cannot win; empty where it can.
    """

    sizes: Sizes
    parameters: int
    figures: Mapping[str, float]
    loss: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return said(self.sizes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Bench:
    """The model that candidates are cut from, and all that they are judged by."""

    opened: Opened
    space: Space
    budgets: tuple[Budget, ...]
    profile: Profile
    score: Score
    batches: Sequence[Batch]
    statistics: Statistics = field(default_factory=Statistics)  # of the original: they serve all trials
    _originals: dict[Budget, Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.program = self.opened.program
        self.stack = stack(self.program)
        self._originals = {b: work(self.program, self.opened.steps, b) for b in self.budgets if b.is_measured}

    @cached_property
    def _without_values(self) -> Program:
        program = self.program.on_device(META)
        program.readers.clear()
        return program

    def original(self, advance: Callable[[], None]) -> Trial:
        count = Footprint.of(self.program)
        figures = {str(b): b.value(count) for b in self.budgets if not b.is_measured}
        loss = zero_shot_loss(self.program, self.batches, advance)
        return Trial(self.space.original, count.parameters, figures, loss if math.isfinite(loss) else None)

    def passes(self, candidate: Candidate) -> tuple[Pass, ...]:
        return self.space.passes(candidate.sizes, self.score)

    def why_not(self, candidate: Candidate) -> str:
        """Why its profile cannot load it, as far as sizes tell; empty where it can."""
        if self.profile.loads_everything:
            return ""
        step = self.space.step(candidate.sizes, self.stack)
        small = self._without_values.clone()
        rewrite(small, step)
        return self.profile.why_not(small, [*self.opened.steps, step])

    def try_out(self, candidate: Candidate, advance: Callable[[], None]) -> Trial:
        """Cut it, without proofs, and see what it can do."""
        figures: dict[str, float] = {str(budget): value for budget, value in candidate.figures.items()}
        if why := self.why_not(candidate):
            return Trial(candidate.sizes, candidate.parameters, figures, why=why)
        small, steps, _ = self._cut(candidate, verify=False)
        loss = zero_shot_loss(small, self.batches, advance)
        if not math.isfinite(loss):
            return Trial(candidate.sizes, candidate.parameters, figures, why="its loss is not finite")
        ratios: dict[str, float] = {}
        why = self._time(small, steps, figures, ratios)
        return Trial(candidate.sizes, candidate.parameters, figures, loss, ratios, why)

    def prove(self, candidate: Candidate) -> dict[str, Any]:
        """The laws after every pass, and why its profile cannot load it after all. Raises ProofError."""
        small, steps, records = self._cut(candidate, verify=True)
        return {"laws": laws_of(records), "why": self.profile.why_not(small, steps)}

    def _cut(self, candidate: Candidate, verify: bool) -> tuple[Program, list[Step], list[Record]]:
        """The model of these sizes, with all steps that it has behind it."""
        passes = self.passes(candidate)
        missing = self.statistics.missing(watch for p in passes for watch in p.watches(self.program))
        if missing:
            self.statistics |= gather(self.program, missing, self.batches)
        pipeline = Pipeline(passes, verify, statistics=self.statistics)
        small = pipeline.run(self.program, self.batches)
        steps = [record.step for record in pipeline.records]
        return small, [*self.opened.steps, *steps], pipeline.records

    def _time(self, small: Program, steps: Sequence[Step], figures: dict[str, float], ratios: dict[str, float]) -> str:
        """Measure what the budgets ask for; returns which of them is broken."""
        broken = []
        for budget, original in self._originals.items():
            try:
                mine = work(small, steps, budget)
            except NotExpressible as refusal:
                return str(refusal)
            seconds, reference = compare(mine, original, self.program.device)
            figures[str(budget)], ratios[str(budget)] = budget.of_seconds(seconds, reference), seconds / reference
            if not budget.allows(figures[str(budget)]):
                broken.append(f"{budget.said(figures[str(budget)])} for {budget}")
        return "; ".join(broken)


def laws_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The laws of all passes as JSON, each with its pass."""
    return [asdict(law) | {"pass": record.name} for record in records for law in record.laws]
