"""What is added up of values while batches run: every statistic is a few sums, so batches of any size give the same.

    tokens      over all tokens                                            count, sum, squares of each index
    mean        of each sequence the mean of absolute values               count, sum, squares over sequences
    l2          of each sequence the L2 norm                               the same
    variance    of each sequence the variance                              the same
    routed      over all tokens the weights of the experts they took       count, sum by expert
    cosine      over all tokens between two values                         count, sum

Padding is left out. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Sums: TypeAlias = "Mapping[str, Tensor]"
# (batch, tokens, indices) of each value, which tokens count (batch, tokens), how many indices there are
Kind: TypeAlias = "Callable[[Sequence[Tensor], Tensor, int], Sums]"


def tokens(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    x = values[0][mask].double()
    return _moments(x)


def mean(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    return _over_sequences(_masked_sum(values[0].abs(), mask) / _count(mask), mask)


def l2(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    return _over_sequences(_masked_sum(values[0].double().square(), mask).sqrt(), mask)


def variance(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    x = values[0].double()
    centered = x - (_masked_sum(x, mask) / _count(mask))[:, None]
    return _over_sequences(_masked_sum(centered.square(), mask) / _count(mask), mask)


def routed(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    """Values are expert ids and their weights, (batch, tokens, choices); the id ``size`` stands for no expert."""
    index, weight = (v[mask].flatten() for v in values)
    total = torch.zeros(size + 1, dtype=torch.float64).index_add_(0, index.cpu(), weight.double().cpu())
    return {"count": mask.sum().double().cpu(), "sum": total[:size]}


def cosine(values: Sequence[Tensor], mask: Tensor, size: int) -> Sums:
    x, y = (v[mask].double() for v in values)
    similar = torch.nn.functional.cosine_similarity(x, y, dim=-1)
    return {"count": mask.sum().double().cpu(), "sum": similar.sum().cpu()}


KINDS: dict[str, Kind] = {
    "tokens": tokens,
    "mean": mean,
    "l2": l2,
    "variance": variance,
    "routed": routed,
    "cosine": cosine,
}


def add(sums: Sums | None, more: Sums) -> Sums:
    return more if sums is None else {name: sums[name] + value for name, value in more.items()}


def over_samples(values: Tensor) -> Sums:
    """Of one value for each sequence and index, (sequences, indices)."""
    return _moments(values.double())


def aggregated(sums: Sums, batch: str) -> Tensor:
    """From sums over sequences (or tokens) to one number an index: their mean, root mean square or variance."""
    count = sums["count"].clamp(min=1)
    average = sums["sum"] / count
    if batch == "mean":
        return average
    squares = sums["squares"] / count
    return squares.sqrt() if batch == "l2" else (squares - average.square()).clamp(min=0)


def _over_sequences(each: Tensor, mask: Tensor) -> Sums:
    return _moments(each[mask.any(1)])


def _moments(x: Tensor) -> Sums:
    count = torch.tensor(float(len(x)), dtype=torch.float64)
    return {"count": count, "sum": x.sum(0).cpu(), "squares": x.square().sum(0).cpu()}


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens that count, in float64."""
    return torch.where(mask[..., None], x, 0).sum(1, dtype=torch.float64)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True).clamp(min=1)
