"""What the library must give, written once more from the papers' formulas: slow, literal, one weight at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def least_squares(weight: Tensor, mask: Tensor, H: Tensor) -> Tensor:
    """Row by row the kept weights that come nearest to the dense row's outputs on X with Xᵀ X = H."""
    X = torch.linalg.cholesky(H).T
    out = torch.zeros_like(weight)
    for row, kept, to in zip(weight, mask, out, strict=True):
        if kept.any():
            to[kept] = torch.linalg.lstsq(X[:, kept], X @ row).solution
    return out


def lagrange(weight: Tensor, mask: Tensor, H: Tensor) -> Tensor:
    """Row by row the solution of the KKT system of min ½ d H dᵀ with (w + d)_P = 0."""
    out = []
    for row, kept in zip(weight, mask, strict=True):
        E = torch.eye(len(row), dtype=row.dtype)[~kept]
        zeros = torch.zeros(len(E), len(E), dtype=row.dtype)
        system = torch.cat([torch.cat([H, E.T], 1), torch.cat([E, zeros], 1)])
        right = torch.cat([torch.zeros_like(row), -row[~kept]])
        out.append(row + torch.linalg.solve(system, right)[: len(row)])
    return torch.stack(out)


def brain_surgeon(row: Tensor, order: Sequence[int], G: Tensor) -> Tensor:
    """Weights of one row removed one after the other, each time with the inverse of what is left (OBS)."""
    row, G = row.clone(), G.clone()
    for j in order:
        row -= row[j] / G[j, j] * G[j]
        G -= torch.outer(G[:, j], G[j]) / G[j, j]
        G[j, j] = 1  # gone: its row and column are 0
    return row


def sparsegpt(weight: Tensor, H: Tensor, block: int, counts: Sequence[int] = (), keep: int = 0, of: int = 0) -> Tensor:
    """Algorithm 1 with a full inverse that is down-dated column by column; masks of each block, or of each N:M group.

    counts: how many weights of each row every block removes, for a mask by rows.
    """
    W, G = weight.clone(), torch.linalg.inv(H)
    m, n = W.shape
    mask = torch.ones(m, n, dtype=torch.bool)
    for j in range(n):
        if of and j % of == 0:
            _mark(W, _diagonals(G, j, j + of), mask, j, of - keep)
        elif not of and j % block == 0:
            _mark(W, _diagonals(G, j, min(j + block, n)), mask, j, counts[j // block])
        for row in range(m):
            if not mask[row, j]:
                W[row, j:] -= W[row, j] / G[j, j] * G[j, j:]
        G -= torch.outer(G[:, j], G[j]) / G[j, j]
    return torch.where(mask, W, 0.0)


def cheapest_sets(weight: Tensor, G: Tensor, keep: int, of: int) -> Tensor:
    """The mask that for every row and group removes the set of least ½ w_P (G_PP)⁻¹ w_Pᵀ."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    for row, start in itertools.product(range(len(weight)), range(0, weight.shape[1], of)):
        losses = {}
        for removed in itertools.combinations(range(start, start + of), of - keep):
            P = list(removed)
            losses[removed] = float(weight[row, P] @ torch.linalg.inv(G[P][:, P]) @ weight[row, P]) / 2
        mask[row, list(min(losses, key=losses.__getitem__))] = False
    return mask


def _diagonals(G: Tensor, start: int, stop: int) -> list[Tensor]:
    """G_jj of columns start … stop − 1, each of the inverse that is left when all columns before it are gone."""
    G, out = G.clone(), []
    for j in range(start, stop):
        out.append(G[j, j].clone())
        G -= torch.outer(G[:, j], G[j]) / G[j, j]
    return out


def _mark(W: Tensor, diagonals: list[Tensor], mask: Tensor, start: int, count: int) -> None:
    for row in range(len(W)):
        scores = [float(W[row, start + i] ** 2 / d) for i, d in enumerate(diagonals)]
        for i in sorted(range(len(scores)), key=scores.__getitem__)[:count]:
            mask[row, start + i] = False
