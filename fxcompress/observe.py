"""Statistics of activations, gathered at nodes while the graph runs over batches: one sweep for all who asked.

The statistic is the mean square of every index of a dim, over all tokens that are not padding: a small observer that
needs memory for one vector a dim, whatever the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import leaves
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.segments import Kept, Segment, segments
from fxcompress.streamed import Run

Batch = Mapping[str, Tensor]


class MeanSquares(Run):
    """Run batches and keep, for each watched (node, dim), the mean square along that dim."""

    def __init__(self, program: Program, watched: Iterable[tuple[fx.Node, int]]) -> None:
        super().__init__(program.module, program.readers)
        self.program = program
        self.sums: dict[tuple[fx.Node, int], Tensor | float] = dict.fromkeys(watched, 0.0)
        self.counts: dict[tuple[fx.Node, int], float] = dict.fromkeys(self.sums, 0.0)
        self._dims: dict[fx.Node, list[int]] = {}
        for node, dim in self.sums:
            self._dims.setdefault(node, []).append(dim)
        whole = Segment(tuple(self.module.graph.nodes)[:-1], ())
        self.parts = segments(program) if self.readers else [whole]

    @torch.no_grad()
    def sweep(self, batches: Sequence[Batch], progress: Callable[[], None] = lambda: None) -> None:
        """Run all batches; ``progress`` is called for each part and batch. Weights in files are read once for all."""
        with Kept() as kept:
            for i, batch in enumerate(batches):
                kept.put(i, dict(zip(self.program.inputs, self.program.bind(**batch), strict=True)))
            for part in self.parts:
                self.hold(part.weights)
                for i in range(len(batches)):
                    self._mask = self._masks(batches[i])
                    values = self._run_part(part, kept.take(i))
                    kept.put(i, values)
                    progress()
        self.hold(())

    def _masks(self, batch: Batch) -> Tensor | None:
        mask = batch.get("attention_mask")
        return None if mask is None else mask.bool()

    def _run_part(self, part: Segment, values: dict[str, Any]) -> dict[str, Any]:
        """Values by node name, before and after a part of the graph."""
        named = {node.name: node for node in self.module.graph.nodes if node.name in values}
        env = self.run_part(part.nodes, {named[name]: value for name, value in values.items()})
        return {node.name: env[node] for node in part.alive}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for dim in self._dims.get(n, ()):
            self._add(n, dim, value)
        return value

    def _add(self, node: fx.Node, dim: int, value: Tensor) -> None:
        squares = value.detach().double() if value.dtype == torch.float64 else value.detach().float()
        squares = squares.movedim(dim, -1).square()
        if self._mask is not None and squares.shape[:2] == self._mask.shape:
            squares = squares[self._mask]
        flat = squares.flatten(0, -2)
        self.sums[node, dim] = self.sums[node, dim] + flat.sum(0, dtype=torch.float64)
        self.counts[node, dim] += flat.shape[0]

    def result(self) -> dict[tuple[str, int], Tensor]:
        """Mean squares by (node name, dim)."""
        return {(n.name, d): torch.as_tensor(self.sums[n, d] / max(self.counts[n, d], 1)) for n, d in self.sums}


def consumers(axes: AxisMap, group: Group) -> list[tuple[fx.Node, int]]:
    """The activations that projections and scans contract over a group's axis and those outside it: (operand, dim)."""
    found: dict[tuple[fx.Node, int], None] = {}
    for reductions in axes.reductions.values():
        for r in reductions:
            here = set(leaves(axes.dims[r.operand][r.dim]))
            if r.neutral == 0.0 and r.operand.op != "get_attr" and {group.axis, *axes.outer[group.axis]} <= here:
                found[r.operand, r.dim] = None
    return list(found)


def batches_of(calibration: Any, batch_size: int = 4) -> list[Batch]:
    """Calibration data as batches: an iterable of dicts or id tensors, or one tensor of ids (samples, length)."""
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2:
            raise CompressError(f"calibration ids have shape {tuple(calibration.shape)}, not (samples, length)")
        return [{"input_ids": ids} for ids in calibration.split(batch_size)]
    if isinstance(calibration, str | Mapping) or not isinstance(calibration, Iterable):
        raise CompressError(f"calibration is a list of batches, not {quoted(calibration)}")
    batches = [_batch(entry) for entry in calibration]
    if not batches:
        raise CompressError("the calibration data has no batch")
    return batches


def _batch(entry: Any) -> Batch:
    batch = {"input_ids": entry} if isinstance(entry, Tensor) else entry
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor | None) for value in batch.values()):
        raise CompressError(f"a batch is token ids (batch, length), or a dict of tensors, not {quoted(entry)}")
    ids = batch.get("input_ids")
    if ids is not None and (ids.is_floating_point() or ids.dim() != 2):
        raise CompressError(f"token ids are {ids.dtype} {tuple(ids.shape)}, not whole numbers (batch, length)")
    return {name: value for name, value in batch.items() if value is not None}
