"""Masks and compensation from left to right in blocks of columns, each block seeing what the ones before did to it.

    G = Uᵀ U;  for every block b:   mask of b from W_b as it is now
                                    E = what b's removed weights leave to be made up for
                                    W_b… ← W_b… − E U_b,b…

Columns of a block are then frozen, and U from the next row on is the factor of the down-dated G: no inverse is ever
computed again (SparseGPT, arXiv 2301.00774, algorithm 1). Within a block, columns go one by one (S, as in SparseGPT)
or all removed weights of a row at once (M, the closed form of ``compensation.exact`` within the block). Masks are
chosen by the single score (S) or by the loss of whole sets (M). S and M are named as in "Pruning Foundation Models for
High Accuracy without Retraining" (Findings of EMNLP 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.weights import compensation, groups
from fxcompress.weights.gram import Damped
from fxcompress.weights.pattern import NM, Pattern
from fxcompress.weights.scores import single

Rule = Literal["S", "M"]


def sweep(
    weight: Tensor,
    gram: Damped,
    pattern: Pattern,
    zero: Tensor,
    mask: Rule = "S",
    compensate: Rule = "S",
    block: int = 128,
    plan: Tensor | None = None,
    memory: int = compensation.MEMORY,
) -> tuple[Tensor, Tensor]:
    """The weight with removed weights 0 and the rest compensated, and its mask: (m, n) each.

    weight: (m, n). zero: bool (m, n), weights that are zero already. mask: "M" with an N:M pattern only. block: columns
    at a time; rounded to whole groups of the pattern. plan: a mask (m, n) of the pattern, of which every block takes
    how many to remove; otherwise the same part of each. memory: bytes to work in.
    """
    W, U = weight.to(gram.matrix, copy=True), gram.upper
    kept = torch.ones_like(W, dtype=torch.bool)
    choice = _Choice(pattern, mask, zero, gram.dead, plan, memory)
    for start, stop in _blocks(W.shape[1], block, choice.step):
        w, u = W[:, start:stop], U[start:stop, start:stop]
        if compensate == "S":
            kept[:, start:stop], error = _one_by_one(w, u, choice, start)
        else:
            kept[:, start:stop], error = _at_once(w, u, choice, start)
        W[:, start:] -= error @ U[start:stop, start:]
    return compensation.none(W, kept), kept


def at_once(
    weight: Tensor,
    gram: Damped,
    pattern: Pattern,
    zero: Tensor,
    mask: Rule = "S",
    memory: int = compensation.MEMORY,
) -> Tensor:
    """The mask (m, n) by the weights (m, n) as they are and the whole of G: one block without what follows."""
    G = gram.inverse
    return _Choice(pattern, mask, zero, gram.dead, None, memory)(weight.to(G), G.diagonal(), G, 0)


@dataclass(frozen=True)
class _Choice:
    """How masks are chosen, wherever in the matrix."""

    pattern: Pattern
    rule: Rule
    zero: Tensor
    dead: Tensor
    plan: Tensor | None
    memory: int

    @property
    def step(self) -> int:
        """How many columns must be chosen from together."""
        return self.pattern.of if isinstance(self.pattern, NM) else 1

    def __call__(self, w: Tensor, diagonal: Tensor, G: Tensor, start: int) -> Tensor:
        """The mask of columns ``start`` … by their weights (m, b) now, G_jj (b,) for single scores, and G (b, b)."""
        columns = slice(start, start + w.shape[1])
        w = w.masked_fill(self.dead[columns], 0.0)  # costs nothing, whatever the damping says
        if self.rule == "S":
            return self.pattern.part(single(w, diagonal), self.zero, start, self.plan)
        assert isinstance(self.pattern, NM), "sets are those of an N:M pattern"
        return groups.mask(w, groups.squares(G, self.pattern.of), self.pattern, self.zero[:, columns], self.memory)


def _one_by_one(w: Tensor, u: Tensor, choice: _Choice, start: int) -> tuple[Tensor, Tensor]:
    """The mask (m, b) and E (m, b) of a block (m, b): its columns go in order, each moving those after it."""
    w, error = w.clone(), torch.zeros_like(w)
    kept = torch.ones_like(w, dtype=torch.bool)
    step = choice.step if choice.step > 1 else w.shape[1]
    for j in range(w.shape[1]):
        if j % step == 0:
            here = slice(j, j + step)
            above = u[here, here]  # what is left of G once all columns before are frozen
            kept[:, here] = choice(w[:, here], above.diagonal().square(), above.T @ above, start + j)
        error[:, j] = compensation.none(w[:, j], ~kept[:, j]) / u[j, j]
        w[:, j:] -= torch.outer(error[:, j], u[j, j:])
    return kept, error


def _at_once(w: Tensor, u: Tensor, choice: _Choice, start: int) -> tuple[Tensor, Tensor]:
    """The mask (m, b) and E (m, b) of a block (m, b): w_P (G_PP)⁻¹ G_P,: is E U with E = w_P (G_PP)⁻¹ (U_:,P)ᵀ."""
    G = u.T @ u
    kept = choice(w, G.diagonal(), G, start)
    return kept, compensation.solve_within(G, ~kept, w, choice.memory) @ u.T


def _blocks(columns: int, block: int, step: int) -> list[tuple[int, int]]:
    """First column and last, exclusive, of every block: whole groups of ``step`` columns."""
    block = max(step, block // step * step)
    return [(start, min(start + block, columns)) for start in range(0, columns, block)]
