"""Which indices of a group matter: one number for each, high is kept.

``magnitude``: L2 norm of the weights over all slots. ``activation``: mean square of what projections consume.
``random``: a baseline. Or the caller's own: a callable ``(program, group) -> tensor``, or tensors by group key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Dim
from fxcompress.errors import CompressError
from fxcompress.keep import coordinates
from fxcompress.observe import consumers
from fxcompress.program import Program

Score: TypeAlias = "str | Callable[[Program, Group], Tensor] | Mapping[str, Tensor]"
Statistics: TypeAlias = "Mapping[tuple[str, int], Tensor]"  # mean squares by (node name, dim)

NAMES = ("magnitude", "activation", "random")


def scores(score: Score, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
    """The scores of a group, of shape ``group.sizes``."""
    if isinstance(score, Mapping):
        if group.key not in score:
            raise CompressError(f"score= has no tensor for the group {group.key}")
        values = score[group.key]
    elif callable(score):
        values = score(program, group)
    elif score == "magnitude":
        values = magnitude(program, group)
    elif score == "activation":
        values = activation(program, group, statistics)
    else:
        values = torch.rand(group.sizes, generator=torch.Generator().manual_seed(seed))
    if tuple(values.shape) != group.sizes:
        raise CompressError(f"{group.key}: the scores have shape {tuple(values.shape)}, the group {group.sizes}")
    if not torch.isfinite(values).all():
        raise CompressError(f"{group.key}: the scores are not finite")
    return values


def magnitude(program: Program, group: Group) -> Tensor:
    """L2 norm of each index over all slots of the group."""
    axes = program.get(AxisMap)
    total = torch.zeros(group.sizes, dtype=torch.float64)
    for slot in group.slots:
        tensor = program.state[slot.name].detach().double()
        squares = tensor.movedim(slot.dim, 0).reshape(tensor.shape[slot.dim], -1).square().sum(1).cpu()
        total += by_index(squares, axes.state[slot.name][slot.dim], axes, group)
    return total.sqrt()


def activation(program: Program, group: Group, statistics: Statistics) -> Tensor:
    """Mean square of each index over the activations that are contracted over the axis."""
    axes = program.get(AxisMap)
    total = torch.zeros(group.sizes, dtype=torch.float64)
    for node, dim in consumers(axes, group):
        total += by_index(statistics[node.name, dim].double().cpu(), axes.dims[node][dim], axes, group)
    return total


def by_index(values: Tensor, dim: Dim, axes: AxisMap, group: Group) -> Tensor:
    """Sum values along a dim into the indices of a group: (size of the dim) -> group.sizes."""
    along = [*axes.outer[group.axis], group.axis]
    places = coordinates(dim, along)
    there = (places >= 0).all(1)
    strides = torch.tensor([torch.Size(group.sizes[i + 1 :]).numel() for i in range(len(along))])
    flat = torch.zeros(torch.Size(group.sizes).numel(), dtype=values.dtype)
    flat.index_add_(0, (places[there] * strides).sum(1), values[there])
    return flat.view(group.sizes)


def best(values: Tensor, count: int) -> Tensor:
    """The ``count`` highest of every row, in ascending order of index; ties go to the lower index."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values
