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
from typing import Any, ClassVar

from torch import nn

from fxcompress.batches import Batch
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.passes import PruneFFN
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.score import Score
from fxcompress.searching.alone import losses_alone
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.by_layers import ByLayers, layers_of_kinds, whole_model
from fxcompress.searching.choices import as_mapping, listed, open_space
from fxcompress.searching.found import Found
from fxcompress.searching.layered import Candidate
from fxcompress.searching.measure import Measure
from fxcompress.searching.space import Choices
from fxcompress.searching.stages import Stage
from fxcompress.searching.subblocks import KINDS, Decisions, Kind, Subblock, footprint, removal, subblocks

FFN = "ffn"
LAYERS: dict[str, Kind] = {f"{kind}_layers": kind for kind in KINDS}
_MOST = 1 << 14  # combinations that are counted


def minipuzzle(
    model: nn.Module | Program | CompressedModel | str | Path,
    budget: str | Budget | Sequence[str | Budget],
    space: Any = None,
    calibration: Any = None,
    *,
    validation: Any = None,
    score: Score = "activation",
    trials: int = 400,
    best: int = 3,
    device: str | None = None,
    out: str | Path | None = None,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> Found:
    """The best smaller models of a grid that keep all budgets, proven, with the passes that make them.

    model: as ``fxcompress.apply`` takes it, with values; it is left alone.
    budget: of parameters, weights or bytes, ``"bytes<=31.7GiB at context=1000000, weights=fp4, cache=fp8"``.
    space: how many layers of a kind may stay, "attention_layers", "ffn_layers" and "ssm_layers", and "ffn", neurons
    that a layer may have, the same number in all; each a list, (low, high, step), or None for what is from half of the
    model's on, in about four steps; an axis that is not named stays as it is, without a space all of them are searched.
    calibration: token ids (batch, length) that layers and neurons are scored on. validation: those that candidates are
    ranked on, by default the same.
    score: of neurons. trials: so many candidates are tried, the largest. best: how many are proven.
    device, out: as in ``fxcompress.search``.

    Ranked by the mean of two parts of the tokens: those whose successor is predicted, and those where the prediction is
    the parent's. The paper ranks by both and does not state how it combines them, so both figures are returned.

    Raises CompressError where nothing in the grid keeps the budgets, with the closest, and for budgets of time, which
    sizes do not tell; ProofError where a law does not hold. (MiniPuzzle: Nemotron-H, arXiv 2504.03624.)
    """
    grid = MiniPuzzle(budgets=budgets_of(budget), space=space, score=score, trials=trials, best=best, device=device)
    return grid.of(model, calibration, example_inputs, out, progress, validation=validation)


@dataclass(frozen=True, kw_only=True)
class MiniPuzzle(ByLayers):
    """What is searched for, see ``minipuzzle``."""

    measure: ClassVar[Measure] = Measure("mean", "mean of accuracy and agreement with the model as it is", high=True)

    trials: int = 400
    best: int = 3

    def check(self) -> None:
        super().check()
        _asked(self.space)

    def candidates(
        self, program: Program, batches: Sequence[Batch], stage: Stage, progress: Progress
    ) -> tuple[Decisions, Candidate, list[Candidate]]:
        grid = Grid.of(program, self.space, self.score)
        losses = losses_alone(program, [Step("alone", remove=(b.path,)) for b in grid.blocks], batches, stage, progress)
        importance = {block: found["hidden"] for block, found in zip(grid.blocks, losses, strict=True)}
        neurons = PruneFFN(size=1, score=self.score).watches(program) if grid.widths else []
        decisions = Decisions(program, gather(program, list(dict.fromkeys(neurons)), batches, progress))
        return decisions, grid.whole(self.budgets), grid.within(self.budgets, decisions, importance)


@dataclass(frozen=True)
class Grid:
    """How many layers of each kind may stay, and which FFN widths there are; ``score`` chooses neurons."""

    program: Program
    blocks: Sequence[Subblock]
    counts: Mapping[str, Sequence[int]]
    widths: Choices | None
    score: Score

    @classmethod
    def of(cls, program: Program, space: Any, score: Score) -> Grid:
        """Raises CompressError for axes and sizes that are not there."""
        blocks = subblocks(program)
        asked = _asked(space)
        return cls(program, blocks, _counts(blocks, asked), _widths(program, asked), score)

    def whole(self, budgets: Sequence[Budget]) -> Candidate:
        """The model as it is."""
        sizes = layers_of_kinds(self.blocks) | ({FFN: self.widths.original} if self.widths else {})
        return whole_model(self.program, budgets, sizes)

    def within(
        self, budgets: Sequence[Budget], decisions: Decisions, importance: Mapping[Subblock, float]
    ) -> list[Candidate]:
        """What keeps all budgets, the largest first, but for the model as it is. Raises CompressError for none."""
        passes = list(self._passes(importance))
        if not passes:
            raise CompressError("the grid has the sizes of the model as it is and no others")
        found = [self._candidate(sizes, chosen, budgets, decisions) for sizes, chosen in passes]
        kept = [one for one in found if all(budget.allows(one.figures[budget]) for budget in budgets)]
        if not kept:
            raise CompressError(_closest(found, budgets))
        return sorted(kept, key=lambda one: -one.parameters)

    def _passes(self, importance: Mapping[Subblock, float]) -> Iterator[tuple[dict[str, int], list[Pass]]]:
        """All combinations of sizes, with the passes that lead there."""
        ranked = {
            name: sorted((b for b in self.blocks if b.kind == LAYERS[name]), key=lambda b: -importance[b])
            for name in self.counts
        }
        axes = {**self.counts, **({FFN: self.widths.sizes} if self.widths else {})}
        if math.prod(map(len, axes.values())) > _MOST:
            raise CompressError(f"the grid has more than {_MOST:,} combinations: give fewer counts, or larger steps")
        for chosen in itertools.product(*axes.values()):
            asked = dict(zip(axes, chosen, strict=True))
            gone = [one for name in self.counts for one in ranked[name][asked[name] :]]
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
        return Candidate(sizes, tuple(passes), count.parameters, figures)


def _asked(space: Any) -> Mapping[str, Any] | None:
    return None if space is None else as_mapping(space, (*LAYERS, FFN))


def _counts(blocks: Sequence[Subblock], asked: Mapping[str, Any] | None) -> dict[str, list[int]]:
    """How many layers of each kind may stay. Raises CompressError for numbers that cannot."""
    there = layers_of_kinds(blocks)
    default = {name: list(range(n, (n - 1) // 2, -max(n // 8, 1))) for name, n in there.items()}
    if asked is None:
        return {name: sorted(numbers) for name, numbers in default.items()}
    found = {name: [n] for name, n in there.items()}
    for name, numbers in asked.items():
        if name == FFN:
            continue
        may = default.get(name, []) if numbers is None else listed(name, numbers, least=0)
        if name not in there or any(n > there[name] for n in may):
            has = ", ".join(f"{n} {kind}" for kind, n in there.items())
            raise CompressError(f"{name}: {list(may)} cannot stay; the model has {has}")
        found[name] = sorted(set(may))
    return found


def _widths(program: Program, asked: Mapping[str, Any] | None) -> Choices | None:
    """The FFN widths; None where there is no choice: the layers have none in common, or only others are asked for."""
    if asked is not None:
        return open_space(program, {FFN: asked[FFN]}, ())[FFN] if FFN in asked else None
    try:
        return open_space(program, {FFN: None}, ())[FFN]
    except CompressError:
        return None


def _closest(found: Sequence[Candidate], budgets: Sequence[Budget]) -> str:
    closest = min(found, key=lambda one: max(budget.excess(one.figures[budget]) for budget in budgets))
    broken = [budget for budget in budgets if not budget.allows(closest.figures[budget])]
    values = ", ".join(f"{budget.said(closest.figures[budget])} for {budget}" for budget in broken)
    return f"nothing in the grid keeps the budget; the closest, {closest}, has {values}"
