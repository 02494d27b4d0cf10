"""Small weights with correlated inputs, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.weights.gram import Damped, Gram


def inputs(n: int, seed: int = 0, tokens: int = 200, rank: int | None = None, noise: float = 0.2) -> Tensor:
    """(tokens, n): of low rank and a little noise, columns of different size, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    rank = rank or max(1, n // 4)
    mixed = _normal(generator, tokens, rank) @ _normal(generator, rank, n) / rank**0.5
    return (mixed + noise * _normal(generator, tokens, n)) * _normal(generator, n).exp()


def problem(m: int, n: int, seed: int = 0) -> tuple[Tensor, Gram]:
    """A weight (m, n) and the Gram matrix of its inputs."""
    return _normal(torch.Generator().manual_seed(seed + 1000), m, n), Gram.of(inputs(n, seed), torch.float64)


def damped(n: int, seed: int = 0, damping: float = 0.01) -> Damped:
    return Gram.of(inputs(n, seed), torch.float64).damped(damping)


def random_mask(m: int, n: int, seed: int = 0, sparsity: float = 0.5) -> Tensor:
    """Rows of different counts, one of them all kept and one all removed where there are rows enough."""
    mask = torch.rand(m, n, generator=torch.Generator().manual_seed(seed + 2000)) >= sparsity
    mask[1:2] = True
    mask[2:3] = False
    return mask


def none_zero(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.bool)


def loss(weight: Tensor, pruned: Tensor, H: Tensor) -> Tensor:
    """½ d H dᵀ of every row (m,)."""
    lost = weight - pruned
    return ((lost @ H) * lost).sum(1) / 2


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)
