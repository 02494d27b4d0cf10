"""How much it costs to remove one weight alone: scores (m, n) of a weight (m, n), the lowest go.

magnitude   |w|                        knows no inputs
wanda       |w| √H_jj                  Wanda, arXiv 2306.11695, section 3: the norm of what the weight adds
single      w² / (2 G_jj)              Optimal Brain Surgeon: the loss when all other weights of the row make up for it
"""

from __future__ import annotations

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w| (m, n)."""
    return weight.abs()


def wanda(weight: Tensor, H: Tensor) -> Tensor:
    """|w_ij| √H_jj (m, n), of H (n, n) without damping."""
    return weight.abs() * H.diagonal().clamp(min=0).sqrt()


def single(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """w_ij² / (2 G_jj) (m, n), of the diagonal of G (n,): SparseGPT, arXiv 2301.00774, equation 3."""
    return weight.square() / (2 * inverse_diagonal)
