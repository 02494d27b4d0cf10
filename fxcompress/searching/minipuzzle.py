"""MiniPuzzle: how many layers of each kind and which FFN width, chosen by trying whole models.

    score every layer and neuron once ──▶ grid: layers of each kind × one FFN width ──▶ what keeps the budgets ──▶ rank

A candidate of the grid keeps the layers and the neurons of the highest scores, so that which ones they are is no part
of the search. Layers are scored by the mean square by which the last hidden state moves without them, neurons by their
activations. Nemotron-H (arXiv 2504.03624, section on compression) made a 47B model of 56B that way: some 400
candidates, the best of which were then distilled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress.batches import Batch
from fxcompress.bounded import quoted
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.layer_scores import importance
from fxcompress.passes import PruneFFN
from fxcompress.pipeline import Pass
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.recipe import Recipe
from fxcompress.searching.accuracy import Accuracy, accuracy, greedy
from fxcompress.searching.budget import Budget
from fxcompress.searching.choices import open_space
from fxcompress.searching.prepare import counted, fitting, open_with_values
from fxcompress.searching.space import Choices, said
from fxcompress.searching.subblocks import (
    KINDS,
    Decisions,
    Kind,
    Subblock,
    footprint,
    removal,
    rewritten,
    subblocks,
)
from fxcompress.statistics import Statistics, Watch

_MOST = 1 << 14  # combinations that are counted
FFN = "ffn_width"


@dataclass(frozen=True)
class Candidate:
    """A model of the grid. ``sizes``: layers that stay of each kind, and the neurons of each FFN as "ffn_width".

    ``figures``: of the budgets, in parameters or bytes.
    """

    sizes: Mapping[str, int]
    recipe: Recipe
    parameters: int
    figures: Mapping[Budget, int]

    def __str__(self) -> str:
        return said(self.sizes)


@dataclass(frozen=True)
class Ranked:
    """A candidate that was tried, and what it predicts."""

    candidate: Candidate
    accuracy: Accuracy


def minipuzzle(
    model: nn.Module | Program | CompressedModel | str | Path,
    budgets: str | Budget | Sequence[str | Budget],
    batches: Any,
    *,
    layers: Mapping[Kind, Sequence[int]] | None = None,
    ffn: Sequence[int] | tuple[int, int, int] | None = None,
    validation: Any = None,
    score: str = "activation",
    trials: int = 400,
    best: int = 3,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> list[Ranked]:
    """The best smaller models of a grid that keep all budgets, best first, each as a recipe for ``fxcompress.apply``.

    model: as ``fxcompress.apply`` takes it, with values; it is left alone.
    budgets: of parameters, weights or bytes, ``"bytes<=31.7GiB at context=1000000, weights=fp4, cache=fp8"``.
    batches: token ids (batch, length) that layers and neurons are scored on; give them as ``calibration`` with the
    passes of a recipe. validation: those that candidates are ranked on, by default the same.
    layers: by kind, "attention", "ffn" or "ssm", how many may stay; by default from half of them on, in
    about four steps. ffn: neurons that a layer may have, the same number in all layers, a list or (low, high, step); by
    default from half of them on. score: of neurons. trials: so many candidates are tried, the largest. best: how many
    are returned.

    Ranked by the mean of two parts of the tokens: those whose successor is predicted, and those where the prediction is
    the parent's. The paper ranks by both and does not state how it combines them, so both figures are returned.

    Raises CompressError where nothing in the grid keeps the budgets, with the closest, and for budgets of time, which
    sizes do not tell. (MiniPuzzle: Nemotron-H, arXiv 2504.03624.)
    """
    bounds = counted(budgets)
    if not 1 <= best <= trials:
        raise CompressError(f"best={best} of trials={trials}: at least one, and no more than are tried")
    program = open_with_values(model, example_inputs)
    data = fitting(program, batches)
    judged_on = data if validation is None else fitting(program, validation)
    grid = _Grid.of(program, layers, ffn, score)
    statistics = gather(program, grid.watches(), data, progress)
    decisions = Decisions(program, statistics)
    found = grid.within(bounds, decisions)
    tried = _try(found[:trials], decisions, judged_on, progress)
    return sorted(tried, key=lambda one: -one.accuracy.mean)[:best]


@dataclass(frozen=True)
class _Grid:
    """How many layers of each kind may stay, and which FFN widths there are; ``score`` chooses neurons."""

    program: Program
    blocks: Sequence[Subblock]
    counts: Mapping[Kind, Sequence[int]]
    widths: Choices | None
    score: str

    @classmethod
    def of(cls, program: Program, layers: Mapping[Kind, Sequence[int]] | None, ffn: Any, score: str) -> _Grid:
        blocks = subblocks(program)
        return cls(program, blocks, _counts(blocks, layers), _widths(program, ffn), score)

    def watches(self) -> list[Watch]:
        """What has to be observed, once, on the whole model."""
        skips = [one.skip_watch(self.program) for one in self.blocks]
        neurons = PruneFFN(size=1, score=self.score).watches(self.program) if self.widths else []
        return list(dict.fromkeys([*skips, *neurons]))

    def within(self, budgets: Sequence[Budget], decisions: Decisions) -> list[Candidate]:
        """What keeps all budgets, the largest first, but for the model as it is. Raises CompressError for none."""
        passes = list(self._passes(decisions.statistics))
        if not passes:
            raise CompressError("the grid has the sizes of the model as it is and no others")
        found = [self._candidate(sizes, chosen, budgets, decisions) for sizes, chosen in passes]
        kept = [one for one in found if all(budget.allows(one.figures[budget]) for budget in budgets)]
        if not kept:
            raise CompressError(_closest(found, budgets))
        return sorted(kept, key=lambda one: -one.parameters)

    def _passes(self, statistics: Statistics) -> Iterator[tuple[dict[str, int], list[Pass]]]:
        """All combinations of sizes, with the passes that lead there."""
        ranked = self._by_importance(statistics)
        names = [*self.counts, *([FFN] if self.widths else [])]
        sizes = [*self.counts.values(), *([self.widths.sizes] if self.widths else [])]
        if math.prod(map(len, sizes)) > _MOST:
            raise CompressError(f"the grid has more than {_MOST:,} combinations: give fewer counts, or larger steps")
        for chosen in itertools.product(*sizes):
            asked = dict(zip(names, chosen, strict=True))
            gone = [one for kind in self.counts for one in ranked[kind][asked[kind] :]]
            passes = [*removal(gone), *self._cut(asked.get(FFN))]
            if passes and len(gone) < len(self.blocks):  # something goes, and not all layers
                yield asked, passes

    def _cut(self, width: int | None) -> list[Pass]:
        if self.widths is None or width is None or width == self.widths.original:
            return []
        return [PruneFFN(size=width, score=self.score)]

    def _candidate(
        self, sizes: dict[str, int], passes: Sequence[Pass], budgets: Sequence[Budget], decisions: Decisions
    ) -> Candidate:
        count = footprint(self.program, decisions.together(passes))
        figures = {budget: int(budget.value(count)) for budget in budgets}
        return Candidate(sizes, Recipe(tuple(passes)), count.parameters, figures)

    def _by_importance(self, statistics: Statistics) -> dict[Kind, list[Subblock]]:
        """The layers of each kind, those that matter most first."""
        value = {one: importance(self.program, (one.path,), "hidden", statistics) for one in self.blocks}
        return {kind: sorted((b for b in self.blocks if b.kind == kind), key=lambda b: -value[b]) for kind in KINDS}


def _counts(blocks: Sequence[Subblock], asked: Mapping[Kind, Sequence[int]] | None) -> dict[Kind, list[int]]:
    """How many layers of each kind may stay. Raises CompressError for numbers that cannot."""
    there = {kind: n for kind in KINDS if (n := sum(one.kind == kind for one in blocks))}
    for kind, numbers in (asked or {}).items():
        if kind not in there or not numbers or any(n not in range(there[kind] + 1) for n in numbers):
            has = ", ".join(f"{n} {kind}" for kind, n in there.items())
            raise CompressError(f"layers: {list(numbers)} of {quoted(kind)} cannot stay; the model has {has}")
    default = {kind: range(n, (n - 1) // 2, -max(n // 8, 1)) for kind, n in there.items()}
    return {kind: sorted(set((asked or {}).get(kind, numbers))) for kind, numbers in default.items()}


def _widths(program: Program, asked: Any) -> Choices | None:
    """The FFN widths; None where the layers have none in common and none is asked for."""
    try:
        return open_space(program, {"ffn": asked}, ())["ffn"]
    except CompressError:
        if asked is None:
            return None
        raise


def _try(
    found: Sequence[Candidate], decisions: Decisions, judged_on: Sequence[Batch], progress: Progress
) -> Iterator[Ranked]:
    program = decisions.program
    parent = greedy(program, judged_on)
    for i, candidate in enumerate(found):
        with progress(f"candidate {i + 1} of {len(found)}, {candidate}", len(judged_on)) as advance:
            small = rewritten(program, decisions.together(candidate.recipe.steps))
            yield Ranked(candidate, accuracy(small, judged_on, parent, advance))


def _closest(found: Sequence[Candidate], budgets: Sequence[Budget]) -> str:
    closest = min(found, key=lambda one: max(budget.excess(one.figures[budget]) for budget in budgets))
    broken = [budget for budget in budgets if not budget.allows(closest.figures[budget])]
    values = ", ".join(f"{budget.said(closest.figures[budget])} for {budget}" for budget in broken)
    return f"nothing in the grid keeps the budget; the closest, {closest}, has {values}"
