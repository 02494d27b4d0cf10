"""The stages of a search: judge the original, try one candidate after the other, prove the best.

Each trial and each proof is a stage by its name: what a journal has is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np

from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass
from fxcompress.progress import Progress
from fxcompress.recipe import Calibration
from fxcompress.searching.budget import Budget
from fxcompress.searching.found import Best, Found
from fxcompress.searching.measure import LOSS, Measure
from fxcompress.searching.trial import Trial

Stage: TypeAlias = "Callable[[str, Callable[[], Any]], Any]"
_REFUSED = 8  # candidates that cannot be loaded, for each that may be tried


class Bench(Protocol):
    """The model that candidates are cut from, and all that they are judged by. A candidate's text is its name."""

    budgets: tuple[Budget, ...]
    batches: Sequence[Batch]

    def original(self, advance: Callable[[], None]) -> Trial:
        """The model as it is; its loss is None where that is not finite."""

    def try_out(self, candidate: Any, advance: Callable[[], None]) -> Trial:
        """What can be known of a candidate without proofs. ``advance`` is called after each batch."""

    def passes(self, candidate: Any) -> tuple[Pass, ...]:
        """What makes a candidate of the model."""

    def prove(self, candidate: Any) -> dict[str, Any]:
        """``laws``, as JSON, and ``why`` it cannot win after all, empty where it can. Raises ProofError."""


@dataclass
class Stages:
    """One search on its way. ``most``: trials; ``wanted``: of them, those that are proven."""

    bench: Bench
    found: Sequence[Any]
    most: int
    wanted: int
    stage: Stage
    progress: Progress
    measure: Measure = LOSS
    tried: list[tuple[Any, Trial]] = field(default_factory=list)

    def run(self, text: Calibration | None = None) -> Found:
        """Raises CompressError where no trial can win, with the closest."""
        original = self._original()
        for i in self._order():
            self._try(self.found[i])
            refused = sum(trial.loss is None for trial in self.trials)
            if len(self.tried) - refused == self.most or refused == _REFUSED * self.most:
                break
        best = tuple(self._prove())
        return Found(self.bench.budgets, original, tuple(self.trials), best, len(self.found), text, self.measure)

    @property
    def trials(self) -> list[Trial]:
        return [trial for _, trial in self.tried]

    def _original(self) -> Trial:
        with self.progress("loss of the original", len(self.bench.batches)) as advance:
            original = Trial(**self.stage("original", lambda: self.bench.original(advance).to_json()))
        if original.loss is None:
            raise CompressError("the loss of the model itself is not finite on this calibration: nothing can be ranked")
        return original

    def _order(self) -> Iterator[int]:
        """The first promise most; where the budget is measured, candidates from all over the space."""
        if not any(budget.is_measured for budget in self.bench.budgets):
            yield from range(len(self.found))
        else:
            spread = np.linspace(0, len(self.found) - 1, self.most).round().astype(int)
            yield from dict.fromkeys(spread.tolist())

    def _try(self, candidate: Any) -> None:
        leader = min(self._able(), key=self.measure.rank, default=None)
        so_far = f"; best so far {self.measure.of(leader):.4f} with {leader}" if leader else ""
        with self.progress(f"trial {len(self.tried) + 1}, {candidate}{so_far}", len(self.bench.batches)) as advance:
            trial = self.stage(f"trial {candidate}", lambda: self.bench.try_out(candidate, advance).to_json())
        self.tried.append((candidate, Trial(**trial)))

    def _able(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.why]

    def _prove(self) -> Iterator[Best]:
        """The best of all trials, each with its proofs. One that cannot be loaded after all makes way for the next."""
        best = 0
        able = [(i, *pair) for i, pair in enumerate(self.tried) if not pair[1].why]
        for i, candidate, trial in sorted(able, key=lambda one: self.measure.rank(one[2])):
            with self.progress(f"proof of {trial}"):
                proof = self.stage(f"proof {candidate}", partial(self.bench.prove, candidate))
            if proof["why"]:
                self.tried[i] = candidate, replace(trial, why=proof["why"])
                continue
            yield Best(trial, self.bench.passes(candidate), tuple(proof["laws"]))
            best += 1
            if best == self.wanted:
                return
        if not best:
            raise CompressError(_nothing(self.trials, self.bench.budgets))


def _nothing(trials: Sequence[Trial], budgets: Sequence[Budget]) -> str:
    """Why no trial can win: the one that is closest to the measured budgets, or what the first cannot be loaded for."""
    timed = [trial for trial in trials if trial.ratios]
    if not timed:
        return f"none of the {len(trials)} candidates that were tried will do; {trials[0]}: {trials[0].why}"
    closest = min(timed, key=lambda t: max(b.excess(t.figures[str(b)]) for b in budgets if str(b) in t.ratios))
    return (
        f"none of the {len(timed)} candidates that were timed keeps the budget; the closest, {closest}: {closest.why}"
    )
