"""Puzzle: a size of its own for every layer, chosen all at once by what each choice costs alone.

    library of choices ──▶ score each replacement alone ──▶ integer program under the budgets ──▶ passes

Every attention, FFN and SSM may be kept, left out or cut. The width of the residual stream is one for all layers, and
no choice here. (Puzzle, arXiv 2411.19146; scores by replacing one block at a time and the integer program as there, its
training of every block in the library left out: what is cut keeps its best indices.)

The sum of scores takes layers as if they did not know of each other: two that stand in for one another look harmless
each, and are not when both go. What the winners lose together has to be measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from fxcompress.batches import Batch
from fxcompress.bounded import quoted
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.recipe import Recipe
from fxcompress.searching.assignment import Bound, Chosen, assign
from fxcompress.searching.budget import Budget
from fxcompress.searching.library import CUTS, LEAVE_OUT, Costed, Option, Sizes, check_sizes, costed, options
from fxcompress.searching.prepare import counted, fitting, open_with_values
from fxcompress.searching.replacement import losses_of
from fxcompress.searching.subblocks import Decisions, footprint, removal, subblocks

Metric = Literal["kl", "hidden"]
MOST_SOLUTIONS = 1000


@dataclass(frozen=True)
class Solution:
    """One choice for every subblock. ``score``: the sum of what each costs alone; ``figures``: of the budgets."""

    chosen: tuple[Option, ...]
    recipe: Recipe
    score: float
    parameters: int
    figures: Mapping[Budget, int]


def puzzle(
    model: nn.Module | Program | CompressedModel | str | Path,
    budgets: str | Budget | Sequence[str | Budget],
    batches: Any,
    *,
    sizes: Sizes | None = None,
    metric: Metric = "kl",
    score: str = "activation",
    best: int = 1,
    apart: int = 1,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> list[Solution]:
    """The choices for all layers of the least sum of scores that keep all budgets, as passes for ``fxcompress.apply``.

    model: as ``fxcompress.apply`` takes it, with values; it is left alone.
    budgets: of parameters, weights or bytes, ``"bytes<=24GB at batch=8, context=32768"``.
    batches: token ids (batch, length), for scores of indices and replacements; give them as ``calibration`` with the
    passes of a recipe. sizes: by axis, "ffn", "query_heads", "kv_heads" and "ssm_heads", what may be left in a layer,
    None for three quarters, half and a quarter; by default all axes. metric: of a replacement alone, "kl" of the logits
    from the whole model's, in nats a token, or "hidden", the mean square by which the last hidden state moves.
    score: which indices a cut keeps. best: how many solutions are returned, fewer where there are no more, each
    different from those before it in ``apart`` subblocks at least.

    Scores of layers are added up, which ignores how they interact: measure the loss of what is returned.

    Raises CompressError where nothing keeps the budgets, with the least that can be reached; where the model as it is
    keeps them; and for budgets of time, which sizes do not tell. (Puzzle: arXiv 2411.19146.)
    """
    bounds, sizes = counted(budgets), dict.fromkeys(CUTS) if sizes is None else sizes
    _check(sizes, metric, best, apart)
    program = open_with_values(model, example_inputs)
    data = fitting(program, batches)
    _require_cut(program, bounds)
    offered = [options(program, block, sizes, score) for block in subblocks(program)]
    watches = [w for several in offered for o in several for p in o.passes if p.observes for w in p.watches(program)]
    decisions = Decisions(program, gather(program, list(dict.fromkeys(watches)), data, progress))
    library = [costed(decisions, several) for several in offered]
    scores = _replacement_scores(program, library, data, metric, progress)
    return _Problem(program, bounds, library, scores).solutions(best, apart)


def _check(sizes: Sizes, metric: str, best: int, apart: int) -> None:
    check_sizes(sizes)
    if metric not in get_args(Metric):
        raise CompressError(f"metric={quoted(metric)} is unknown; there are {', '.join(get_args(Metric))}")
    if not 1 <= best <= MOST_SOLUTIONS or apart < 1:
        raise CompressError(f"best={best}, apart={apart}: 1 to {MOST_SOLUTIONS} solutions, 1 or more subblocks apart")


def _require_cut(program: Program, budgets: Sequence[Budget]) -> None:
    """Raise CompressError where nothing has to go."""
    whole = footprint(program, Step("whole"))
    if all(budget.allows(budget.value(whole)) for budget in budgets):
        raise CompressError(f"the model as it is keeps {' and '.join(map(str, budgets))}: nothing has to go")


def _replacement_scores(
    program: Program, library: Sequence[Sequence[Costed]], batches: Sequence[Batch], metric: Metric, progress: Progress
) -> list[list[float]]:
    """What each choice costs alone; nothing where a subblock is kept."""
    count = sum(len(several) - 1 for several in library)
    scores = []
    with progress("replacements, one by one", count * len(batches)) as advance:
        for several in library:
            found = losses_of(program, [one.step for one in several[1:]], batches, advance)
            scores.append([0.0, *(values[metric] for values in found)])
    return scores


@dataclass(frozen=True)
class _Problem:
    """Which choices there are for each subblock, what they cost, and what they may cost together."""

    program: Program
    budgets: Sequence[Budget]
    library: Sequence[Sequence[Costed]]
    scores: Sequence[Sequence[float]]

    def solutions(self, best: int, apart: int) -> list[Solution]:
        """Raises CompressError where there is none."""
        found: list[Solution] = []
        ruled_out: list[tuple[Chosen, int]] = []
        bounds = [self._one_stays(), *map(self._bound, self.budgets)]
        while len(found) < best and (chosen := assign(self.scores, bounds, ruled_out)) is not None:
            solution = self._solution(chosen)
            kept = all(budget.allows(value) for budget, value in solution.figures.items())
            found += [solution] if kept else []  # what layers share is not saved when one of them goes
            ruled_out.append((chosen, apart if kept else 1))
        if not found:
            raise CompressError(self._least())
        return found

    def _solution(self, chosen: Chosen) -> Solution:
        taken = [several[c] for several, c in zip(self.library, chosen, strict=True)]
        count = footprint(self.program, _joined([one.step for one in taken]))
        score = sum(values[c] for values, c in zip(self.scores, chosen, strict=True))
        figures = {budget: int(budget.value(count)) for budget in self.budgets}
        options = tuple(one.option for one in taken)
        return Solution(options, Recipe(tuple(_passes(options))), score, count.parameters, figures)

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


def _passes(chosen: Sequence[Option]) -> list[Pass]:
    """Layers go first, so that what is cut after them is proven on the smaller model."""
    gone = [one.subblock for one in chosen if one.name == LEAVE_OUT]
    return [*removal(gone), *(p for one in chosen if one.name != LEAVE_OUT for p in one.passes)]


def _joined(steps: Sequence[Step]) -> Step:
    keep = {key: index for step in steps for key, index in step.keep.items()}
    return Step("together", keep, tuple(path for step in steps for path in step.remove))
