"""Where the sequences and tokens of a value lie: from any of its layouts to (sequences, tokens, indices)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph
from fxcompress.axes import AxisMap
from fxcompress.axis import Axis, Dim, leaves
from fxcompress.errors import CompressError


@dataclass(frozen=True)
class Tokens:
    """The axes of a program's inputs that are sequences and tokens, found again in its other values."""

    axes: AxisMap
    batch: Axis | None
    length: Axis | None

    @classmethod
    def of(cls, axes: AxisMap) -> Tokens:
        """By the first input: (sequences, tokens) of ids, (sequences, ..., features) of anything else."""
        first = next(iter(axes.program.graph.find_nodes(op="placeholder")), None)
        dims: Any = axes.dims.get(first, ()) if first is not None else ()
        batch = _only(dims[0]) if dims else None
        is_ids = first is not None and not first.meta["val"].is_floating_point()
        return cls(axes, batch, _only(dims[1]) if is_ids and len(dims) > 1 else None)

    def split(self, node: fx.Node, dim: int, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """A node's value as (sequences, tokens, indices of dim), and which of the tokens count, (sequences, tokens).

        ``mask``: of the inputs, (sequences, tokens). Raises CompressError where padding cannot be told apart.
        """
        value, at = self._in_order(node, dim, value, mask)
        if mask is not None and at == 2:
            repeated = mask.bool()[(...,) + (None,) * (value.dim() - 3)].expand(value.shape[:-1])
            return value.flatten(1, -2), repeated.flatten(1)
        if mask is not None and not mask.all():
            where = graph.module_path(node) or node.name
            raise CompressError(
                f"padding cannot be told apart in {node.name} of {where}: calibrate with sequences of one length"
            )
        value = value.flatten(1, -2) if at else value.flatten(0, -2)[None]
        return value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)

    def _in_order(self, node: fx.Node, dim: int, value: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """Sequences first, then tokens, the watched dim last; and how many of the two were found."""
        dims: list[Dim] = list(self.axes.dims[node])
        dim %= len(dims)
        dims.pop(dim)
        value = value.movedim(dim, -1)
        axes = [axis for axis in (self.batch, self.length) if axis is not None]
        flat = next((i for i, d in enumerate(dims) if len(axes) == 2 and [*leaves(d)] == axes), None)
        if flat is not None and mask is not None:
            value = value.unflatten(flat, tuple(mask.shape))
            dims[flat : flat + 1] = [(axis,) for axis in axes]
        found = 0
        for axis in axes:
            at = next((i for i, d in enumerate(dims) if [*leaves(d)] == [axis]), None)
            if at is None:
                break
            value = value.movedim(at, found)
            dims.insert(found, dims.pop(at))
            found += 1
        return (value if value.dim() >= 3 else value[:, None]) if found else value, found


def _only(dim: Dim) -> Axis | None:
    """The axis that a dim is."""
    found = list(leaves(dim))
    return found[0] if len(found) == 1 else None
