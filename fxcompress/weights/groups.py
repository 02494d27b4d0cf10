"""The multiple mask of N:M sparsity: in each group of M columns the set P of M − N weights that costs least together.

    loss(P) = ½ w_P (G_PP)⁻¹ w_Pᵀ = ½ ‖L⁻¹ w_Pᵀ‖²,   G_PP = L Lᵀ

All C(M, N) sets are tried; the loss is that of removing many weights at once in "Pruning Foundation Models for High
Accuracy without Retraining" (Findings of EMNLP 2024). G_PP does not depend on the row, so one matrix a group whitens
every set of every row: w_group A, with the columns of L⁻ᵀ of each set side by side in A.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.weights.pattern import NM

_MOST_SETS = 20_000  # C(16, 8) = 12,870


def mask(weight: Tensor, blocks: Tensor, pattern: NM, zero: Tensor, memory: int = 1 << 28) -> Tensor:
    """Bool (m, n), True where a weight stays.

    weight: (m, n). blocks: (n / M, M, M), of G the square of every group. zero: bool (m, n), weights that are zero
    already: of the sets that are tried those with most of them, and all of them stay zero. memory: bytes to work in.
    Raises CompressError for a pattern of too many sets.
    """
    m, M = weight.shape[0], pattern.of
    sets = _removed_sets(pattern).to(weight.device)  # (s r)
    whiten = _whiten(blocks, sets)  # (g M (s r))
    member = torch.zeros(len(sets), M, device=weight.device).scatter_(1, sets, 1.0)  # (s M)
    w, z = weight.reshape(m, -1, M).transpose(0, 1), zero.reshape(m, -1, M).transpose(0, 1)  # (g m M)
    rows = max(1, memory // (weight.element_size() * len(blocks) * (sets.numel() + 3 * len(sets))))
    gone = torch.cat(
        [
            member[_best(w[:, i : i + rows], z[:, i : i + rows], whiten, member, sets.shape[1])]
            for i in range(0, m, rows)
        ],
        dim=1,
    )
    return ~(gone.transpose(0, 1).reshape_as(weight).bool() | zero)


def squares(matrix: Tensor, size: int) -> Tensor:
    """The squares (b / M, M, M) on the diagonal of a matrix (b, b)."""
    columns = torch.arange(len(matrix), device=matrix.device).view(-1, size)
    return matrix[columns[:, :, None], columns[:, None, :]]


def _best(weight: Tensor, zero: Tensor, whiten: Tensor, member: Tensor, r: int) -> Tensor:
    """Index of the cheapest set (g, rows) of weights (g, rows, M)."""
    loss = (weight @ whiten).unflatten(-1, (-1, r)).square().sum(-1)  # (g rows s)
    zeros = zero.to(member) @ member.T  # zeros that each set removes
    return loss.masked_fill(zeros < zeros.amax(-1, keepdim=True), math.inf).argmin(-1)


def _whiten(blocks: Tensor, sets: Tensor) -> Tensor:
    """A (g, M, (s r)): w_group A is L⁻¹ w_P of every set P, one after the other."""
    s, r = sets.shape
    lower = torch.linalg.cholesky(blocks[:, sets[:, :, None], sets[:, None, :]])  # (g s r r)
    eye = torch.eye(r, dtype=blocks.dtype, device=blocks.device)
    columns = torch.linalg.solve_triangular(lower, eye, upper=False).transpose(-1, -2)
    out = blocks.new_zeros(len(blocks), s, blocks.shape[1], r)
    out.scatter_(2, sets[None, :, :, None].expand_as(columns), columns)
    return out.transpose(1, 2).flatten(2)


def _removed_sets(pattern: NM) -> Tensor:
    """All sets of M − N of M columns, (s, r), in lexicographic order."""
    require_few_sets(pattern)
    return torch.tensor(list(itertools.combinations(range(pattern.of), pattern.of - pattern.keep)))


def require_few_sets(pattern: NM) -> None:
    """Raise CompressError for a pattern of too many sets to try."""
    count = math.comb(pattern.of, pattern.keep)
    if count > _MOST_SETS:
        raise CompressError(f"{pattern} has {count:,} sets a group, too many to try: take the single mask, mask='S'")
