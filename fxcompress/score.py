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
from fxcompress.axis import Dims, leaves
from fxcompress.bounded import quoted
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
    if not isinstance(values, Tensor):
        raise CompressError(f"{group.key}: the scores are {quoted(values)}, not a tensor of shape {group.sizes}")
    if tuple(values.shape) != group.sizes:
        raise CompressError(f"{group.key}: the scores have shape {tuple(values.shape)}, the group {group.sizes}")
    if not torch.isfinite(values).all():
        raise CompressError(f"{group.key}: the scores are not finite")
    return values


def magnitude(program: Program, group: Group) -> Tensor:
    """L2 norm of each index over all slots of the group."""
    axes = program.get(AxisMap)
    total = torch.zeros(group.sizes, dtype=torch.float64)
    along = {group.axis, *axes.outer[group.axis]}
    for name in dict.fromkeys(slot.name for slot in group.slots):
        dims = axes.state[name]
        kept = [i for i, dim in enumerate(dims) if along & set(leaves(dim))]
        total += by_index(_sums_of_squares(program.read(name), kept), dims, axes, group)
    return total.sqrt()


_PIECE = 1 << 24  # elements that are widened at a time: a large embedding in float64 would be eight times itself


def _sums_of_squares(tensor: Tensor, kept: list[int]) -> Tensor:
    """Sums over all dims but ``kept``, which have size 1 then, in float64."""
    others = [i for i in range(tensor.dim()) if i not in kept]
    rows = max(1, _PIECE * len(tensor) // max(tensor.numel(), 1)) if tensor.dim() else 1
    pieces = tensor.split(rows) if tensor.dim() else [tensor]
    sums = [squares.sum(others, keepdim=True) if others else squares for squares in map(_squares, pieces)]
    return torch.cat(sums) if 0 in kept else torch.stack(sums).sum(0)


def _squares(tensor: Tensor) -> Tensor:
    return tensor.double().square().cpu()


def activation(program: Program, group: Group, statistics: Statistics) -> Tensor:
    """Mean square of each index over the activations that are contracted over the axis."""
    axes = program.get(AxisMap)
    total = torch.zeros(group.sizes, dtype=torch.float64)
    for node, dim in consumers(axes, group):
        values = statistics[node.name, dim].double().cpu()
        total += by_index(values, (axes.dims[node][dim],), axes, group)
    return total


def by_index(values: Tensor, dims: Dims, axes: AxisMap, group: Group) -> Tensor:
    """Sum the values of a tensor into the indices of a group: (sizes of the dims) -> group.sizes.

    Where the axis is found in several dims of the tensor, each of them counts.
    """
    out = torch.zeros(group.sizes, dtype=values.dtype)
    for i, dim in enumerate(dims):
        if group.axis in leaves(dim):
            out += _by_index_of(values, dims, i, axes, group)
    return out


def _by_index_of(values: Tensor, dims: Dims, own: int, axes: AxisMap, group: Group) -> Tensor:
    """The same for one dim that has the axis; its outer axes may be in other dims."""
    along, here = [*axes.outer[group.axis], group.axis], set(leaves(dims[own]))
    holders = [own if a in here else next(i for i, dim in enumerate(dims) if a in leaves(dim)) for a in along]
    others = [i for i in range(len(dims)) if i not in (own, *holders)]
    values = values.sum(others, keepdim=True) if others else values
    place, there = torch.zeros([], dtype=torch.long), torch.ones([], dtype=torch.bool)
    for axis, holder, size in zip(along, holders, group.sizes, strict=True):
        index = coordinates(dims[holder], [axis])[:, 0].view([-1 if i == holder else 1 for i in range(len(dims))])
        place, there = place * size + index, there & (index >= 0)
    place, there = place.expand(values.shape), there.expand(values.shape)
    flat = torch.zeros(torch.Size(group.sizes).numel(), dtype=values.dtype)
    return flat.index_add_(0, place[there], values[there]).view(group.sizes)


def best(values: Tensor, count: int) -> Tensor:
    """The ``count`` highest of every row, in ascending order of index; ties go to the lower index."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values
