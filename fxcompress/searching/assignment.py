"""One choice for every layer, of the least sum of scores, with sums of costs under their limits.

    min Σ s_lc x_lc    with    Σ_c x_lc = 1 for every layer l,    Σ a_lc x_lc ≤ limit for every bound,    x in {0, 1}

An integer program (Puzzle, arXiv 2411.19146, section on search), solved to optimality by HiGHS. Solvers compute in
floats with tolerances; what comes back is added up again in whole numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fxcompress.errors import CompressError

PerChoice: TypeAlias = "Sequence[Sequence[float]]"  # a number for each choice of each layer
Chosen: TypeAlias = "tuple[int, ...]"  # the position of the choice of each layer

_SCALE = 1e3  # of the largest score: HiGHS stops at an absolute gap of 1e-6
_INFEASIBLE = 2


@dataclass(frozen=True)
class Bound:
    """The costs of what is chosen, one for each choice of each layer, add up to no more than ``limit``."""

    costs: Sequence[Sequence[int]]
    limit: float

    def allows(self, chosen: Chosen) -> bool:
        return sum(costs[c] for costs, c in zip(self.costs, chosen, strict=True)) <= self.limit


def assign(scores: PerChoice, bounds: Sequence[Bound], ruled_out: Sequence[tuple[Chosen, int]] = ()) -> Chosen | None:
    """The best choice of each layer; None where nothing keeps all bounds.

    ruled_out: earlier assignments, each with the number of layers in which this one has to differ at least.
    """
    tried = list(ruled_out)
    while (chosen := _solve(scores, bounds, tried)) is not None:
        if all(bound.allows(chosen) for bound in bounds):
            return chosen
        tried.append((chosen, 1))  # over a limit by less than the solver's tolerance
    return None


def _solve(scores: PerChoice, bounds: Sequence[Bound], ruled_out: Sequence[tuple[Chosen, int]]) -> Chosen | None:
    from scipy.optimize import Bounds, LinearConstraint  # slow to import, and only needed here

    sizes = [len(layer) for layer in scores]
    starts = np.cumsum([0, *sizes])
    rows, lower, upper = [np.repeat(np.eye(len(sizes)), sizes, axis=1)], [np.ones(len(sizes))], [np.ones(len(sizes))]
    for costs, limit in [*map(_scaled, bounds), *(_apart(starts, *one) for one in ruled_out)]:
        rows, lower, upper = [*rows, costs[None]], [*lower, np.array([-np.inf])], [*upper, np.array([limit])]
    objective = _flat(scores)
    result = _milp(
        objective * (_SCALE / max(np.abs(objective).max(), 1e-300)),
        integrality=np.ones(starts[-1]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.concatenate(rows), np.concatenate(lower), np.concatenate(upper)),
    )
    if result.status == _INFEASIBLE:
        return None
    if result.x is None or not result.success:
        raise CompressError(f"the choice of layers was not found: {result.message}")
    return tuple(int(result.x[a:b].argmax()) for a, b in itertools.pairwise(starts))


def _milp(*problem: Any, **more: Any) -> Any:
    """HiGHS's answer; some two in 100,000 problems with mixed magnitudes are too much for its presolve."""
    from scipy.optimize import milp

    result = milp(*problem, **more, options={"mip_rel_gap": 0})
    if result.success or result.status == _INFEASIBLE:
        return result
    return milp(*problem, **more, options={"mip_rel_gap": 0, "presolve": False})


def _scaled(bound: Bound) -> tuple[np.ndarray, float]:
    """The costs and their limit, as parts of the largest: tolerances are absolute."""
    costs = _flat(bound.costs)
    largest = max(np.abs(costs).max(), abs(bound.limit), 1e-300)
    return costs / largest, bound.limit / largest


def _apart(starts: np.ndarray, chosen: Chosen, layers: int) -> tuple[np.ndarray, float]:
    """At most all layers but so many choose as before."""
    same = np.zeros(starts[-1])
    same[starts[:-1] + np.array(chosen)] = 1
    return same, len(chosen) - layers


def _flat(numbers: PerChoice) -> np.ndarray:
    return np.concatenate([np.asarray(layer, dtype=np.float64) for layer in numbers])
