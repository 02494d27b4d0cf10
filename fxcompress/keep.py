"""From the kept indices of axes to the kept indices of dims.

A ``Keep`` holds, for each axis that is cut, the indices that stay: one row of them, or one row for every index of the
axes outside it, where the choice may differ from group to group (``outer`` says which axes those are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fxcompress.axis import Axis, Dim, factors, leaves, size

Keep: TypeAlias = "Mapping[Axis, Tensor]"  # axis -> kept indices, shape (*sizes of the outer axes, count)
Outer: TypeAlias = "Mapping[Axis, tuple[Axis, ...]]"


def is_cut(dim: Dim, keep: Keep) -> bool:
    return any(axis in keep for axis in leaves(dim))


def kept_size(dim: Dim, keep: Keep) -> int:
    """How many indices of the dim stay: the same formula for every choice of the same sizes."""
    total = 1
    for axis in factors(dim):
        if axis.kind == "sum":
            total *= sum(kept_size(part, keep) for part in axis.parts)
        else:
            total *= keep[axis].shape[-1] if axis in keep else axis.size
    return total


def kept_indices(dim: Dim, keep: Keep, outer: Outer) -> Tensor:
    """The indices of the dim that stay, in the order in which ``keep`` names them."""
    return _select(dim, keep, outer, {}, rows=1)[0]


def _select(dim: Dim, keep: Keep, outer: Outer, at: Mapping[Axis, Tensor], rows: int) -> Tensor:
    """Kept indices of the dim for every row, (rows, kept); ``at`` says where on the outer axes each row stands."""
    flat = torch.zeros(rows, 1, dtype=torch.long)
    here = {axis: index[:, None] for axis, index in at.items()}
    for axis in factors(dim):
        places = {a: index.flatten() for a, index in here.items()}
        if axis.kind == "sum":
            index = _select_sum(axis, keep, outer, places, flat.numel())
        else:
            index = _select_free(axis, keep, outer, places, flat.numel())
        index = index.view(*flat.shape, -1)
        flat = (flat[..., None] * axis.size + index).flatten(1)
        here = {a: i[..., None].expand_as(index).flatten(1) for a, i in here.items()}
        if axis.kind == "free":
            here[axis] = index.flatten(1)
    return flat


def _select_free(axis: Axis, keep: Keep, outer: Outer, at: Mapping[Axis, Tensor], rows: int) -> Tensor:
    if axis not in keep:
        return torch.arange(axis.size).expand(rows, -1)
    index = keep[axis]
    if index.dim() == 1:
        return index.expand(rows, -1)
    return index[tuple(at[a] for a in outer[axis])]


def _select_sum(axis: Axis, keep: Keep, outer: Outer, at: Mapping[Axis, Tensor], rows: int) -> Tensor:
    parts, start = [], 0
    for part in axis.parts:
        parts.append(_select(part, keep, outer, at, rows) + start)
        start += size(part)
    return torch.cat(parts, dim=1)


def coordinates(dim: Dim, axes: Sequence[Axis]) -> Tensor:
    """Where each index of the dim stands on the given axes, (size, len(axes)); -1 where it does not cross an axis."""
    out = torch.full((1, len(axes)), -1)
    for axis in factors(dim):
        if axis.kind == "sum":
            inner = torch.cat([coordinates(part, axes) for part in axis.parts])
        else:
            inner = torch.full((axis.size, len(axes)), -1)
            if axis in axes:
                inner[:, axes.index(axis)] = torch.arange(axis.size)
        out = torch.where(inner[None] >= 0, inner[None], out[:, None]).flatten(0, 1)
    return out
