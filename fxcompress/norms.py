"""L2 norms of weights by the index of a group, in float64, a piece of a tensor at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import leaves
from fxcompress.program import Program
from fxcompress.score import by_index


def magnitude(program: Program, group: Group) -> Tensor:
    """L2 norm of each index over all slots of the group."""
    axes = program.get(AxisMap)
    total = torch.zeros(group.sizes, dtype=torch.float64)
    along = {group.axis, *axes.outer[group.axis]}
    for name in dict.fromkeys(slot.name for slot in group.slots):
        dims = axes.state[name]
        kept = [i for i, dim in enumerate(dims) if along & set(leaves(dim))]
        total += by_index(sums_of_squares(program.read(name), kept), dims, axes, group)
    return total.sqrt()


_PIECE = 1 << 24  # elements that are widened at a time: a large embedding in float64 would be eight times itself


def sums_of_squares(tensor: Tensor, kept: list[int]) -> Tensor:
    """Sums over all dims but ``kept``, which have size 1 then, in float64."""
    others = [i for i in range(tensor.dim()) if i not in kept]
    rows = max(1, _PIECE * len(tensor) // max(tensor.numel(), 1)) if tensor.dim() else 1
    pieces = tensor.split(rows) if tensor.dim() else [tensor]
    sums = [squares.sum(others, keepdim=True) if others else squares for squares in map(_squares, pieces)]
    return torch.cat(sums) if 0 in kept else torch.stack(sums).sum(0)


def _squares(tensor: Tensor) -> Tensor:
    return tensor.double().square().cpu()
