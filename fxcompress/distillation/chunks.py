"""Sums over positions, a chunk of them at a time: logits of all positions never exist at once.

    sum_t f(x_t)  =  sum over chunks of  sum_{t in chunk} f(x_t)

Backward computes each chunk anew, so that memory is chunk x vocabulary instead of positions x vocabulary, for one more
run of the last projection. (8 x 8,192 tokens over 131,072 ids have 34 GB of logits in float32, in each model.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def chunked(function: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
    """The sum of ``function`` over chunks of at most ``size`` positions; inputs (positions, ...), one at the least.

    function: of the inputs at some positions, to sums over those. Without positions it is called once, on none.
    """
    pieces = list(zip(*(x.split(size) for x in inputs), strict=True))
    return _sum([_again(function, piece) for piece in pieces])


def _again(function: Callable[..., Tensor], piece: Sequence[Tensor]) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*piece)
    return checkpoint(function, *piece, use_reentrant=False)


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum(0)
