"""Puzzle: a size of its own for every layer, chosen all at once by what each choice costs alone.

    library of choices ──▶ score each replacement alone ──▶ integer program under the budgets ──▶ passes

Every attention, FFN and SSM may be kept, left out or cut. The width of the residual stream is one for all layers, and
no choice here. (Puzzle, arXiv 2411.19146; scores by replacing one block at a time and the integer program as there, its
training of every block in the library left out: what is cut keeps its best indices.)

The sum of scores takes layers as if they did not know of each other: two that stand in for one another look harmless
each, and are not when both go. So several solutions are run as a whole, and ranked by the loss that they really have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from fxcompress.batches import Batch
from fxcompress.bounded import quoted
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.score import Score
from fxcompress.searching.alone import losses_alone
from fxcompress.searching.assignment import Bound, Chosen, assign
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.by_layers import ByLayers, layers_of_kinds, whole_model
from fxcompress.searching.found import Found
from fxcompress.searching.layered import Candidate
from fxcompress.searching.library import KEEP, LEAVE_OUT, Costed, costed, open_sizes, options, passes_of
from fxcompress.searching.measure import LOSS, Measure
from fxcompress.searching.stages import Stage
from fxcompress.searching.subblocks import Decisions, footprint, subblocks

Metric = Literal["kl", "hidden"]
MOST_SOLUTIONS = 1000


def puzzle(
    model: nn.Module | Program | CompressedModel | str | Path,
    budget: str | Budget | Sequence[str | Budget],
    space: Any = None,
    calibration: Any = None,
    *,
    metric: Metric = "kl",
    score: Score = "activation",
    trials: int = 8,
    best: int = 3,
    apart: int = 1,
    device: str | None = None,
    out: str | Path | None = None,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> Found:
    """The choices for all layers of the least sum of scores that keep all budgets, proven, with their passes.

    model: as ``fxcompress.apply`` takes it, with values; it is left alone.
    budget: of parameters, weights or bytes, ``"bytes<=24GB at batch=8, context=32768"``.
    space: by axis, "ffn", "query_heads", "kv_heads" and "ssm_heads", what may be left in a layer, a list, (low, high,
    step), or None for three quarters, half and a quarter; by default all axes. Any part may be left out besides.
    calibration: token ids (batch, length), for scores of indices and of replacements, and for the loss that ranks.
    metric: of a replacement alone, "kl" of the logits from the whole model's, in nats a token, or "hidden", the mean
    square by which the last hidden state moves. score: which indices a cut keeps.
    trials: so many solutions are run as a whole, fewer where there are no more, each different from those before it in
    ``apart`` subblocks at least. best: how many of them, from the lowest loss on, are proven.
    device, out: as in ``fxcompress.search``.

    Raises CompressError where nothing keeps the budgets, with the least that can be reached; where the model as it is
    keeps them; and for budgets of time, which sizes do not tell; ProofError where a law does not hold. (Puzzle: arXiv
    2411.19146.)
    """
    asked = Puzzle(
        budgets=budgets_of(budget),
        space=space,
        metric=metric,
        score=score,
        trials=trials,
        best=best,
        apart=apart,
        device=device,
    )
    return asked.of(model, calibration, example_inputs, out, progress)


@dataclass(frozen=True, kw_only=True)
class Puzzle(ByLayers):
    """What is searched for, see ``puzzle``."""

    measure: ClassVar[Measure] = LOSS

    trials: int = 8
    best: int = 3
    metric: Metric = "kl"
    apart: int = 1

    def check(self) -> None:
        super().check()
        open_sizes(self.space)
        if self.metric not in get_args(Metric):
            raise CompressError(f"metric={quoted(self.metric)} is unknown; there are {', '.join(get_args(Metric))}")
        if self.trials > MOST_SOLUTIONS or self.apart < 1:
            raise CompressError(
                f"trials={self.trials}, apart={self.apart}: up to {MOST_SOLUTIONS} solutions, 1 or more subblocks apart"
            )

    def candidates(
        self, program: Program, batches: Sequence[Batch], stage: Stage, progress: Progress
    ) -> tuple[Decisions, Candidate, list[Candidate]]:
        _require_cut(program, self.budgets)
        blocks, sizes = subblocks(program), open_sizes(self.space)
        offered = [options(program, block, sizes, self.score) for block in blocks]
        watches = [w for several in offered for o in several if o.cut for w in o.cut.watches(program)]
        decisions = Decisions(program, gather(program, list(dict.fromkeys(watches)), batches, progress))
        library = [costed(decisions, several) for several in offered]
        steps = [one.step for several in library for one in several if one.option.name != KEEP]
        losses = iter(losses_alone(program, steps, batches, stage, progress))
        scores = [[0.0 if c.option.name == KEEP else next(losses)[self.metric] for c in several] for several in library]
        problem = Problem(program, self.budgets, library, scores, f"sum of {self.metric}")
        return decisions, problem.whole(), problem.solutions(self.trials, self.apart)


def _require_cut(program: Program, budgets: Sequence[Budget]) -> None:
    """Raise CompressError where nothing has to go."""
    whole = footprint(program, Step("whole"))
    if all(budget.allows(budget.value(whole)) for budget in budgets):
        raise CompressError(f"the model as it is keeps {' and '.join(map(str, budgets))}: nothing has to go")


@dataclass(frozen=True)
class Problem:
    """Which choices there are for each subblock, what they cost, and what they may cost together.

    ``sum_of``: what the sum of scores is called.
    """

    program: Program
    budgets: Sequence[Budget]
    library: Sequence[Sequence[Costed]]
    scores: Sequence[Sequence[float]]
    sum_of: str

    def whole(self) -> Candidate:
        """The model as it is."""
        sizes = self._sizes([several[0] for several in self.library], 0)
        return whole_model(self.program, self.budgets, sizes, **{self.sum_of: 0.0})

    def solutions(self, most: int, apart: int) -> list[Candidate]:
        """Those of the least sums, the least first. Raises CompressError where there is none."""
        found: list[Candidate] = []
        ruled_out: list[tuple[Chosen, int]] = []
        bounds = [self._one_stays(), *map(self._bound, self.budgets)]
        while len(found) < most and (chosen := assign(self.scores, bounds, ruled_out)) is not None:
            solution = self._solution(chosen, len(found) + 1)
            kept = all(budget.allows(value) for budget, value in solution.figures.items())
            found += [solution] if kept else []  # what layers share is not saved when one of them goes
            ruled_out.append((chosen, apart if kept else 1))
        if not found:
            raise CompressError(self._least())
        return found

    def _solution(self, chosen: Chosen, number: int = 0) -> Candidate:
        taken = [several[c] for several, c in zip(self.library, chosen, strict=True)]
        count = footprint(self.program, _joined([one.step for one in taken]))
        score = sum(values[c] for values, c in zip(self.scores, chosen, strict=True))
        figures = {budget: int(budget.value(count)) for budget in self.budgets}
        passes = passes_of([one.option for one in taken])
        return Candidate(self._sizes(taken, number), passes, count.parameters, figures, {self.sum_of: score})

    def _sizes(self, taken: Sequence[Costed], number: int) -> dict[str, int]:
        """Which solution it is, how many layers stay of each kind, and in how many parts something is cut."""
        there = layers_of_kinds([several[0].option.subblock for several in self.library])
        stay = layers_of_kinds([one.option.subblock for one in taken if one.option.name != LEAVE_OUT])
        layers = {name: stay.get(name, 0) for name in there}
        return {"solution": number, **layers, "cut": sum(one.option.cut is not None for one in taken)}

    def _bound(self, budget: Budget) -> Bound:
        """The budget as a bound on changes from the whole model; a lower one turned around."""
        sign = -1 if budget.at_least else 1
        room = budget.limit - int(budget.value(footprint(self.program, Step("whole"))))
        return Bound([[sign * one.cost(budget) for one in several] for several in self.library], sign * room)

    def _one_stays(self) -> Bound:
        """A model has to have a layer."""
        gone = [[int(one.option.name == LEAVE_OUT) for one in several] for several in self.library]
        return Bound(gone, len(gone) - 1)

    def _least(self) -> str:
        """Why nothing keeps the budgets: what each of them can reach, alone or while the others are kept."""
        alone = {budget: self._extreme(budget, []) for budget in self.budgets}
        broken = {b: value for b, value in alone.items() if value is not None and not b.allows(value)}
        if not broken:
            others = {b: self._extreme(b, [o for o in self.budgets if o is not b]) for b in self.budgets}
            broken = {b: value for b, value in others.items() if value is not None}
        said = "; ".join(f"{b} can reach {b.said(value)}" for b, value in broken.items())
        return f"no choice of layers keeps the budget: {said or 'none of its bounds while the others are kept'}"

    def _extreme(self, budget: Budget, others: Sequence[Budget]) -> int | None:
        """The best figure of a budget, the others kept."""
        costs = self._bound(budget).costs
        chosen = assign(costs, [self._one_stays(), *map(self._bound, others)])
        return None if chosen is None else self._solution(chosen).figures[budget]


def _joined(steps: Sequence[Step]) -> Step:
    keep = {key: index for step in steps for key, index in step.keep.items()}
    return Step("together", keep, tuple(path for step in steps for path in step.remove))
