"""From the kept indices of axes to the kept indices of dims.

A ``Keep`` holds, for each axis that is cut, the indices that stay: one row of them, or one row for every index of the
axes outside it, where the choice may differ from group to group (``outer`` says which axes those are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fxcompress.axis import Axis, Dim, Dims, Size, factors, leaves, size

Keep: TypeAlias = "Mapping[Axis, Tensor]"  # axis -> kept indices, shape (*sizes of the outer axes, count)
Outer: TypeAlias = "Mapping[Axis, tuple[Axis, ...]]"


def is_cut(dim: Dim, keep: Keep) -> bool:
    return any(axis in keep for axis in leaves(dim))


def kept_size(dim: Dim, keep: Keep) -> int:
    """How many indices of the dim stay: the same formula for every choice of the same sizes."""
    return size_with(dim, lambda axis: keep[axis].shape[-1] if axis in keep else axis.size)  # type: ignore[return-value]


def size_with(dim: Dim, count: Callable[[Axis], Size]) -> Size:
    """The size of the dim where its free axes have other sizes, numbers or symbols."""
    total: Size = 1
    for axis in factors(dim):
        if axis.kind == "sum":
            total *= sum(size_with(part, count) for part in axis.parts)
        else:
            total *= count(axis)
    return total


def kept_before(dim: Dim, position: int, keep: Keep) -> int:
    """How many kept indices lie before a position at which the dim is cut into parts."""
    if not is_cut(dim, keep):
        return position
    outer, *inner = factors(dim)
    assert outer.kind == "sum" or position in (0, size(dim)), "a cut between parts"
    steps, before = position // size(inner), 0  # type: ignore[operator]
    for part in outer.parts if outer.kind == "sum" else [(outer,)]:
        taken = min(steps, size(part))
        before += kept_size(part, keep) if taken == size(part) else kept_before(part, taken, keep) if taken else 0
        steps -= taken
    return before * kept_size(tuple(inner), keep)


def select(tensor: Tensor, dims: Dims, keep: Keep, outer: Outer) -> Tensor:
    """The kept indices of every dim of a tensor."""
    depends = {i: outside for i, dim in enumerate(dims) if (outside := _outside(dim, keep, outer))}
    while depends:  # first, while the dims that a choice depends on still have all of their indices
        read = {axis for outside in depends.values() for axis in outside}
        i = next((i for i in depends if not read & set(leaves(dims[i]))), next(iter(depends)))
        tensor = tensor.take_along_dim(_table(tensor, dims, i, keep, outer).to(tensor.device), i)
        del depends[i]
    for i, dim in enumerate(dims):
        if is_cut(dim, keep) and not _outside(dim, keep, outer):
            tensor = tensor.index_select(i, kept_indices(dim, keep, outer).to(tensor.device))
    return tensor


def _outside(dim: Dim, keep: Keep, outer: Outer) -> list[Axis]:
    """The axes along which the choice on this dim differs and which are not in the dim itself."""
    here = list(leaves(dim))
    cut = [axis for axis in here if axis in keep and keep[axis].dim() > 1]
    return list(dict.fromkeys(a for axis in cut for a in outer[axis] if a not in here))


def _table(tensor: Tensor, dims: Dims, i: int, keep: Keep, outer: Outer) -> Tensor:
    """Kept indices of dim i at every place on the other dims, in a shape that broadcasts against the tensor."""
    shape = [1] * len(dims)
    at: dict[Axis, Tensor] = {}
    for axis in _outside(dims[i], keep, outer):
        j = next(j for j, dim in enumerate(dims) if axis in set(leaves(dim)))
        shape[j] = tensor.shape[j]
        at[axis] = coordinates(dims[j], [axis])[:, 0].view([-1 if k == j else 1 for k in range(len(dims))])
    rows = {axis: place.expand(shape).flatten() for axis, place in at.items()}
    index = _select(dims[i], keep, outer, rows, math.prod(shape))
    return index.view(*shape, -1).movedim(-1, i).squeeze(i + 1)


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


def coordinates(dim: Dim, axes: Sequence[Axis], count: Callable[[Axis], Size] = lambda axis: axis.size) -> Tensor:
    """Where each index of the dim stands on the given axes, (size, len(axes)); -1 where it does not cross an axis.

    ``count`` gives the number of indices of an axis, for those whose size is known at run time only.
    """
    out = torch.full((1, len(axes)), -1)
    for axis in factors(dim):
        if axis.kind == "sum":
            inner = torch.cat([coordinates(part, axes, count) for part in axis.parts])
        else:
            inner = torch.full((int(count(axis)), len(axes)), -1)
            if axis in axes:
                inner[:, axes.index(axis)] = torch.arange(len(inner))
        out = torch.where(inner[None] >= 0, inner[None], out[:, None]).flatten(0, 1)
    return out
