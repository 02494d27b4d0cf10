"""What the kept weights of a row become when others are removed, by the closed form over the whole row.

    W ← W − W_P (G_PP)⁻¹ G_P,:        over the removed P, or, where fewer are kept,
    w_K ← w_K + w_P H_PK (H_KK)⁻¹     over the kept K: the same weights

For a fixed mask this is the least possible loss tr (W − W') H (W − W')ᵀ, H with its damping: the optimal update of
"Pruning Foundation Models for High Accuracy without Retraining" (Findings of EMNLP 2024). For one removed weight it is
that of Optimal Brain Surgeon. Either solved row by row, or for all rows at once by conjugate gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.weights.gram import Damped

MEMORY = 1 << 30  # bytes that the systems of the rows in work may take


def none(weight: Tensor, mask: Tensor) -> Tensor:
    """The kept weights as they are, the removed ones 0."""
    return torch.where(mask, weight, 0.0)


def exact(weight: Tensor, mask: Tensor, gram: Damped, memory: int = MEMORY) -> Tensor:
    """The weights (m, n) of least loss under a mask (m, n), True where a weight stays; removed ones are exactly 0.

    memory: in bytes, at most so much for the systems of the rows in work, or for those of one row if that is more.
    """
    weight, fewer_gone = weight.to(gram.matrix), 2 * mask.sum(1) > mask.shape[1]
    out = torch.empty_like(weight)
    for rows, part in ((fewer_gone, _by_removed), (~fewer_gone, _by_kept)):  # of either system the smaller
        if bool(rows.any()):
            out[rows] = part(weight[rows], mask[rows], gram, memory)
    return none(out, mask)


def _by_removed(weight: Tensor, mask: Tensor, gram: Damped, memory: int) -> Tensor:
    return weight - solve_within(gram.inverse, ~mask, weight, memory) @ gram.inverse


def _by_kept(weight: Tensor, mask: Tensor, gram: Damped, memory: int) -> Tensor:
    return weight + solve_within(gram.matrix, mask, none(weight, ~mask) @ gram.matrix, memory)


def conjugate_gradient(
    weight: Tensor,
    mask: Tensor,
    gram: Damped,
    start: Tensor | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """The weights (m, n) of least loss under a mask, approached from ``start`` (the masked weights where None).

    All rows take their steps together, preconditioned by the diagonal of H; the loss falls with every step (ALPS, arXiv
    2406.07831, algorithm 2). Stops after ``iterations``, or when the gradient of every row is less than ``tolerance``
    of what it was. Removed weights are exactly 0.
    """
    H, W = gram.matrix, weight.to(gram.matrix)
    diagonal, tiny = H.diagonal(), torch.finfo(H.dtype).tiny
    out = none(W if start is None else start.to(W), mask)
    residual = none((W - out) @ H, mask)  # minus the gradient on the support
    direction = residual / diagonal
    size = first = (residual * direction).sum(1, keepdim=True)
    for _ in range(iterations):
        if bool((size <= tolerance**2 * first).all()):
            break
        image = none(direction @ H, mask)
        length = size / (direction * image).sum(1, keepdim=True).clamp(min=tiny)
        out = out + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        size, last = (residual * scaled).sum(1, keepdim=True), size
        direction = scaled + size / last.clamp(min=tiny) * direction
    return out


def solve_within(matrix: Tensor, sets: Tensor, right: Tensor, memory: int = MEMORY) -> Tensor:
    """x (m, n) with x_S A_SS = b_S in every row, and 0 outside of S.

    matrix: A (n, n), positive definite. sets: S, bool (m, n), any number a row. right: b (m, n).
    Raises CompressError where A_SS has no Cholesky factor.
    """
    counts = sets.sum(1)
    members = sets.int().argsort(dim=1, descending=True, stable=True)  # of every row those in S first
    out = torch.zeros_like(right)
    for rows in _chunks(counts, right.element_size(), memory):
        k = int(counts[rows].max())
        if k:
            columns = members[rows, :k]
            inside = torch.arange(k, device=right.device) < counts[rows, None]
            out[rows[:, None], columns] = _solve(matrix, columns, inside, right[rows].gather(1, columns))
    return out


def _solve(matrix: Tensor, columns: Tensor, inside: Tensor, right: Tensor) -> Tensor:
    """x (R, k) of the systems (R, k, k) at these columns (R, k); those not inside are padded: identity, and 0."""
    A = matrix[columns[:, :, None], columns[:, None, :]]
    A.mul_(inside[:, :, None]).mul_(inside[:, None, :])
    A.diagonal(dim1=1, dim2=2).add_((~inside).to(A))
    lower, failed = torch.linalg.cholesky_ex(A)
    if bool(failed.any()):
        raise CompressError(
            f"the weights of {int(failed.count_nonzero())} rows cannot be solved for: their inputs depend on each other"
            " too nearly; raise damping, or add up the Gram matrix in float64"
        )
    return torch.cholesky_solve((right * inside)[:, :, None], lower)[:, :, 0]


def _chunks(counts: Tensor, bytes_each: int, memory: int) -> list[Tensor]:
    """Rows in groups whose systems, padded to the largest, fit the memory: rows of about one size together."""
    order = counts.argsort(descending=True, stable=True)
    out, start = [], 0
    while start < len(order):
        k = int(counts[order[start]])
        rows = max(1, memory // max(1, 2 * k * k * bytes_each))  # the system and its factor
        out.append(order[start : start + rows])
        start += rows
    return out
