"""The original model as if indices were removed: nothing is cut, each op that reduces sees their neutral element.

This is the other side of the law *prune equals mask*. It shares no code with the rewrite: masks are made from
coordinates, one truth value for each element, where the rewrite selects indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from fxcompress import blocks
from fxcompress.axes import AxisMap
from fxcompress.axis import Axis, Dims, leaves, size
from fxcompress.keep import Keep, coordinates, kept_size
from fxcompress.program import Program
from fxcompress.rule import AVERAGE, Reduction, bind
from fxcompress.streamed import Run

aten = torch.ops.aten


class MaskedRun(Run):
    """Run a program with some indices of its axes at their neutral elements and some modules' branches at zero."""

    def __init__(self, program: Program, keep: Keep, removed: Sequence[str] = ()) -> None:
        super().__init__(program.module, program.readers)
        self.axes = program.get(AxisMap)
        self.keep = keep
        found = [blocks.read_block(program, path) for path in removed]
        self.branches = {(addition, branch) for block in found for addition, branch in block.branches}
        self._sizes: dict[Any, int] = {}

    def run(self, *inputs: Tensor) -> Any:  # type: ignore[override]
        self._sizes = sizes_at_run_time(self.axes.program, inputs)
        return super().run(*inputs)

    def _count(self, axis: Axis) -> int:
        return int(sympy.sympify(axis.size).subs(self._sizes))

    def run_node(self, n: fx.Node) -> Any:
        return self._run_masked(n) if n.op == "call_function" else super().run_node(n)

    def _run_masked(self, n: fx.Node) -> Any:
        reductions = [r for r in self.axes.reductions.get(n, ()) if self._is_cut(self.axes.dims[r.operand][r.dim])]
        neutral = {}
        for operand in dict.fromkeys(r.operand for r in reductions):
            neutral[operand] = self._neutralise(operand, [r for r in reductions if r.operand is operand])
        for addition, branch in self.branches:
            if addition is n:
                neutral[branch] = torch.zeros_like(self.value(branch))
        args, kwargs = self.arguments(n, neutral)
        if any(r.neutral == AVERAGE for r in reductions):
            return self._average(n, neutral, self.axes.reductions[n], args, kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def _is_cut(self, dim: tuple[Axis, ...]) -> bool:
        return any(axis in self.keep for axis in leaves(dim))

    def _neutralise(self, operand: fx.Node, reductions: list[Reduction]) -> Tensor:
        """The operand's value with the removed indices of the reduced dims at their neutral element."""
        value: Tensor = self.value(operand)
        for reduction in reductions:
            fill = 0.0 if reduction.neutral == AVERAGE else float(reduction.neutral)
            value = value.masked_fill(self._removed(self.axes.dims[operand], reduction.dim).to(value.device), fill)
        return value

    def _removed(self, dims: Dims, reduced: int) -> Tensor:
        """Which elements of a tensor stand at a removed index of the reduced dim; broadcasts against the tensor."""
        cut_axes = [axis for axis in dict.fromkeys(leaves(dims[reduced])) if axis in self.keep]
        removed = torch.zeros([1] * len(dims), dtype=torch.bool)
        for axis in cut_axes:
            outer = self.axes.outer[axis] if self.keep[axis].dim() > 1 else ()
            stays = torch.zeros([*(a.size for a in outer), axis.size], dtype=torch.bool)
            stays.scatter_(-1, self.keep[axis], True)
            at = self._place(dims, axis, [reduced])
            # a square weight has the outer axis in both of its dims: the one that counts stands in the reduced dim
            among = {a: [reduced] if a in set(leaves(dims[reduced])) else range(len(dims)) for a in outer}
            places = [self._place(dims, a, among[a]).clamp(min=0) for a in outer]
            removed = removed | ((at >= 0) & ~stays[(*places, at.clamp(min=0))])
        return removed

    def _place(self, dims: Dims, axis: Axis, among: Sequence[int]) -> Tensor:
        """Where each element of the tensor stands on an axis, as a tensor that broadcasts; -1 where it does not."""
        place = torch.full([1] * len(dims), -1)
        for i in among:
            if axis in set(leaves(dims[i])):
                shape = [1] * len(dims)
                shape[i] = -1
                place = torch.maximum(place, coordinates(dims[i], [axis], self._count)[:, 0].view(shape))
        return place

    def _average(self, n: fx.Node, neutral: dict, reductions: list[Reduction], args: Any, kwargs: Any) -> Tensor:
        """Averages run over the kept indices: the removed ones are zero in the sum and do not count."""
        operand = reductions[0].operand
        dims = [self.axes.dims[operand][r.dim] for r in reductions]
        total, kept = 1, 1
        for dim in dims:
            total, kept = total * size(dim), kept * kept_size(dim, self.keep)  # type: ignore[operator]
        if n.target is aten.mean.dim:
            return n.target(*args, **kwargs) * (total / kept)
        x = neutral[operand]
        named = {k: self.value(v) if isinstance(v, fx.Node) else v for k, v in bind(n).items()}
        along = [r.dim for r in reductions]
        stays = torch.zeros([], dtype=torch.bool)
        for i in along:
            stays = stays | self._removed(self.axes.dims[operand], i)
        return _normalise(n.target, x, named, along, ~stays.to(x.device), kept)


def sizes_at_run_time(program: Program, inputs: Sequence[Tensor]) -> dict[Any, int]:
    """The values of the symbols in a program's sizes, for given inputs."""
    out = {}
    for node, tensor in zip(program.graph.find_nodes(op="placeholder"), inputs, strict=True):
        for symbolic, n in zip(node.meta["val"].shape, tensor.shape, strict=True):
            if isinstance(symbolic, torch.SymInt) and symbolic.node.expr.is_Symbol:
                out[symbolic.node.expr] = n
    return out


def _normalise(op: Any, x: Tensor, named: dict[str, Any], along: list[int], stays: Tensor, kept: int) -> Tensor:
    """layer_norm and rms_norm over the kept indices; ``x`` is zero at the others."""
    eps = named["eps"] if named["eps"] is not None else torch.finfo(x.dtype).eps
    if op is aten.layer_norm.default:
        x = (x - x.sum(along, keepdim=True) / kept) * stays
    y = x * torch.rsqrt((x * x).sum(along, keepdim=True) / kept + eps)
    if named["weight"] is not None:
        y = y * named["weight"]
    return y if named.get("bias") is None else y + named["bias"]
