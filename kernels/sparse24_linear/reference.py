"""A matrix of which two of every four weights are held, 2:4, with the places of the two in their group."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.kernels._register import widen


def sparse24_linear(x: Tensor, packed: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose matrix is 2:4.

        W[o, 4 g + a] = packed[o, 2 g]    W[o, 4 g + b] = packed[o, 2 g + 1]    meta[o, g] = a + 4 b, a < b < 4
        y = x Wᵀ + bias

    x (..., i), packed (o, i/2), meta (o, i/4) uint8, bias (o) -> y (..., o), in the dtype of x. Gradients are those
    of x, packed and bias: a weight that is not held stays zero.

    Mishra et al., Accelerating sparse deep neural networks, arXiv 2104.08378, section 3.
    """
    dtype = x.dtype
    x, packed, bias = widen(x, packed, bias)
    return F.linear(x, to_dense(packed, meta), bias).to(dtype)


def to_dense(packed: Tensor, meta: Tensor) -> Tensor:
    """The matrix itself, (o, i)."""
    rows, groups = meta.shape
    first = 4 * torch.arange(groups, device=meta.device)
    places = torch.stack([first + meta % 4, first + meta // 4], -1)
    return packed.new_zeros(rows, 4 * groups).scatter(1, places.flatten(1), packed)


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (o, i) as packed and meta; a group with more than two zeros holds some of them."""
    groups = weight.detach().reshape(len(weight), -1, 4)
    places = (groups == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    packed = groups.gather(-1, places).flatten(1)
    return packed, (places[..., 0] + 4 * places[..., 1]).to(torch.uint8)
