"""The stages of a search: score the original, try one candidate after the other, prove the best.

Each trial and each proof is a stage by its name: what a journal has is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from fxcompress.errors import CompressError
from fxcompress.memory import Footprint
from fxcompress.progress import Progress
from fxcompress.recipe import Calibration
from fxcompress.searching.budget import Budget
from fxcompress.searching.candidates import Candidates
from fxcompress.searching.found import Best, Found
from fxcompress.searching.trial import Bench, Trial

Stage: TypeAlias = "Callable[[str, Callable[[], Any]], Any]"
_REFUSED = 8  # candidates that cannot be loaded, for each that may be tried


@dataclass
class Stages:
    """One search on its way. ``most``: trials; ``wanted``: of them, those that are proven."""

    bench: Bench
    found: Candidates
    most: int
    wanted: int
    stage: Stage
    progress: Progress
    trials: list[Trial] = field(default_factory=list)

    def run(self, text: Calibration | None = None) -> Found:
        """Raises CompressError where no trial can win, with the closest."""
        original = self._original()
        for i in self._order():
            self._try(i)
            refused = sum(trial.loss is None for trial in self.trials)
            if len(self.trials) - refused == self.most or refused == _REFUSED * self.most:
                break
        best = tuple(self._prove())
        return Found(self.bench.budgets, original, tuple(self.trials), best, len(self.found), text)

    def _original(self) -> Trial:
        with self.progress("loss of the original", len(self.bench.batches)) as advance:
            loss = self.stage("original", lambda: _finite(self.bench.original_loss(advance)))
        if loss is None:
            raise CompressError("the loss of the model itself is not finite on this calibration: nothing can be ranked")
        count = Footprint.of(self.bench.program)
        figures = {str(b): b.value(count) for b in self.bench.budgets if not b.is_measured}
        return Trial(self.bench.space.original, count.parameters, figures, loss)

    def _order(self) -> Iterator[int]:
        """The largest first, as they promise most; where the budget is measured, sizes from all over the space."""
        if not any(budget.is_measured for budget in self.bench.budgets):
            yield from range(len(self.found))
        else:
            spread = np.linspace(0, len(self.found) - 1, self.most).round().astype(int)
            yield from dict.fromkeys(spread.tolist())

    def _try(self, i: int) -> None:
        candidate, leader = self.found[i], min(self._able(), key=_loss, default=None)
        so_far = f"; best so far {leader.loss:.4f} with {leader}" if leader else ""
        with self.progress(f"trial {len(self.trials) + 1}, {candidate}{so_far}", len(self.bench.batches)) as advance:
            trial = self.stage(f"trial {candidate}", lambda: self.bench.try_out(candidate, advance).to_json())
        self.trials.append(Trial(**trial))

    def _able(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.why]

    def _prove(self) -> Iterator[Best]:
        """The best of all trials, each with its proofs. One that cannot be loaded after all makes way for the next."""
        best = 0
        for trial in sorted(self._able(), key=_loss):
            with self.progress(f"proof of {trial}"):
                proof = self.stage(f"proof {trial}", partial(self.bench.prove, trial.sizes))
            if proof["why"]:
                self.trials[self.trials.index(trial)] = replace(trial, why=proof["why"])
                continue
            yield Best(trial, self.bench.space.passes(trial.sizes, self.bench.score), tuple(proof["laws"]))
            best += 1
            if best == self.wanted:
                return
        if not best:
            raise CompressError(_nothing(self.trials, self.bench.budgets))


def _loss(trial: Trial) -> float:
    assert trial.loss is not None
    return trial.loss


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nothing(trials: Sequence[Trial], budgets: Sequence[Budget]) -> str:
    """Why no trial can win: the one that is closest to the measured budgets, or what the first cannot be loaded for."""
    timed = [trial for trial in trials if trial.ratios]
    if not timed:
        return f"none of the {len(trials)} candidates that were tried will do; {trials[0]}: {trials[0].why}"
    closest = min(timed, key=lambda t: max(b.excess(t.figures[str(b)]) for b in budgets if str(b) in t.ratios))
    return (
        f"none of the {len(timed)} candidates that were timed keeps the budget; the closest, {closest}: {closest.why}"
    )
