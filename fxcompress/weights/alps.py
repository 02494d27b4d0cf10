"""The support search of ALPS: a mask by ADMM (arXiv 2406.07831, section 3).

    min ½ tr (W' − W) H (W' − W)ᵀ  with W' = D, D of the pattern
    W' ← (W H − V + ρ D)(H + ρI)⁻¹;   D ← the pattern's part of W' + V/ρ;   V ← V + ρ (W' − D)

H is scaled to a unit diagonal first. ρ grows faster the more the support still changes, until it does not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.weights import compensation
from fxcompress.weights.gram import Damped
from fxcompress.weights.pattern import Pattern

_EVERY = 3  # iterations between looks at the support


@dataclass(frozen=True)
class Search:
    """rho: the first penalty. iterations: at most so many. settled: after ``early`` iterations, a change of the support
    by less than this part of the kept weights is none. All as the authors set them."""

    rho: float = 0.1
    iterations: int = 300
    early: int = 30
    settled: float = 3e-4


def support(weight: Tensor, gram: Damped, pattern: Pattern, zero: Tensor, search: Search | None = None) -> Tensor:
    """The mask (m, n), True where a weight stays.

    weight: (m, n). zero: bool (m, n), weights that are zero already.
    """
    search = search or Search()
    scale = gram.matrix.diagonal().sqrt()
    H = gram.matrix / scale / scale[:, None]
    values, vectors = (part.to(H) for part in torch.linalg.eigh(H.double()))
    W = weight.to(H) * scale
    target, rho, grown = W @ H, search.rho, False
    dense = _project(W, pattern, zero, gram.dead)
    D, V = dense, torch.zeros_like(W)
    before = D != 0
    inverse = _inverse(values, vectors, rho)
    for step in range(1, search.iterations + 1):
        current = (target - V + rho * D) @ inverse
        D = _project(current + V / rho, pattern, zero, gram.dead)
        V = V + rho * (current - D)
        if step % _EVERY:
            continue
        now = D != 0
        changed = int((now != before).sum())
        part, before = changed / max(1, int(now.sum())), now
        factor = _growth(part, changed)
        grown = grown or factor > 1.1
        if (grown and not changed) or (step > search.early and part < search.settled):
            break
        if grown:
            rho *= factor
        else:  # so large a penalty that the support never moved from that of the dense weights
            rho, D, V = rho / 5, dense, torch.zeros_like(W)
        inverse = _inverse(values, vectors, rho)
    return before


def _project(target: Tensor, pattern: Pattern, zero: Tensor, dead: Tensor) -> Tensor:
    """The nearest matrix of the pattern, where weights of dead inputs count as 0."""
    return compensation.none(target, pattern.part(target.square().masked_fill(dead, 0.0), zero, 0))


def _inverse(values: Tensor, vectors: Tensor, rho: float) -> Tensor:
    """(H + ρI)⁻¹ of the eigenvalues and eigenvectors of H."""
    return (vectors / (values + rho)) @ vectors.T


def _growth(part: float, changed: int) -> float:
    """By how much ρ grows when this part of the support changed."""
    if part > 0.1:
        return 1.3
    if part > 0.005:
        return 1.2
    return 1.1 if changed else 1.0
