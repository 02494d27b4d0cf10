"""All sizes of a space that keep the budgets, the largest model first.

Every combination is counted and none is rewritten: what is proposed can be cut, and its figures are those of the cut
model. The largest come first because they are the most promising (as in the search of Model-Optimizer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.budget import Budget
from fxcompress.searching.predict import Array, Predictor
from fxcompress.searching.space import LAYERS, Sizes, Space, said

_MOST = 1 << 22  # combinations that are counted


@dataclass(frozen=True)
class Candidate:
    """A size for every axis, the parameters that they leave, and the figure of every budget that sizes have."""

    sizes: Sizes
    parameters: int
    figures: Mapping[Budget, int]

    def __str__(self) -> str:
        return said(self.sizes)


@dataclass(frozen=True)
class Candidates(Sequence[Candidate]):
    """Candidates in columns, as there may be millions."""

    sizes: Mapping[str, Array]
    parameters: Array
    figures: Mapping[Budget, Array]

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, i: int) -> Candidate:  # type: ignore[override]
        sizes = {name: int(column[i]) for name, column in self.sizes.items()}
        figures = {budget: int(column[i]) for budget, column in self.figures.items()}
        return Candidate(sizes, int(self.parameters[i]), figures)

    def taken(self, rows: Any) -> Candidates:
        """Those at some positions, or where a mask says so."""
        return Candidates(
            {name: column[rows] for name, column in self.sizes.items()},
            self.parameters[rows],
            {budget: column[rows] for budget, column in self.figures.items()},
        )


def candidates(program: Program, space: Space, budgets: Sequence[Budget]) -> Candidates:
    """What of a space keeps the budgets that follow from sizes, but for the model as it is.

    Raises CompressError where nothing does, with the closest.
    """
    counted = [budget for budget in budgets if not budget.is_measured]
    if len(space) > _MOST:
        raise CompressError(f"the space has {len(space):,} combinations; {_MOST:,} are counted: take larger steps")
    found = _smaller(program, space, counted)
    excess = np.full(len(found), -np.inf)
    for budget in counted:
        excess = np.maximum(excess, budget.excess(found.figures[budget]))
    if not (excess <= 0).any():
        raise CompressError(_closest(found[int(excess.argmin())], counted))
    kept = found.taken(excess <= 0)
    return kept.taken(np.argsort(-kept.parameters, kind="stable"))


def _smaller(program: Program, space: Space, counted: Sequence[Budget]) -> Candidates:
    """Every combination of sizes but the original's own."""
    predictor = Predictor(program, space)
    layers = space[LAYERS]
    parts = [_of_depth(predictor, n, counted) for n in (layers.sizes if layers else (len(space.layer_order),))]
    columns = [{**part.sizes, **part.figures, "": part.parameters} for part in parts]
    joined = {key: np.concatenate([column[key] for column in columns]) for key in columns[0]}
    found = Candidates(
        {axis.name: joined[axis.name] for axis in space.choices},
        joined[""],
        {budget: joined[budget] for budget in counted},
    )
    cut = np.any([found.sizes[axis.name] != axis.original for axis in space.choices], axis=0)
    if not cut.any():
        raise CompressError("the space has the sizes of the model as it is and no others")
    return found.taken(cut)


def _of_depth(predictor: Predictor, layers: int, counted: Sequence[Budget]) -> Candidates:
    """Every combination with so many layers."""
    grid = np.meshgrid(*(np.array(axis.sizes, dtype=np.int64) for axis in predictor.cut), indexing="ij")
    sizes = {axis.name: column.ravel() for axis, column in zip(predictor.cut, grid, strict=True)}
    count = predictor.footprint(layers, sizes)
    if predictor.space[LAYERS]:
        sizes[LAYERS] = np.full(count.parameters.shape, layers)
    return Candidates(sizes, count.parameters, {budget: budget.value(count) for budget in counted})


def _closest(candidate: Candidate, counted: Sequence[Budget]) -> str:
    broken = [budget for budget in counted if not budget.allows(candidate.figures[budget])]
    values = ", ".join(f"{budget.said(candidate.figures[budget])} for {budget}" for budget in broken)
    return f"no candidate keeps the budget; the closest, {candidate}, has {values}"
