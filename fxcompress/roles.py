"""What an axis is, read off the ops around it and never off names.

Scans and attention name theirs by the letters of their rules. Two more are shapes of the graph:

* ``residual``: an axis of a sum x + f(x), where one operand of the addition comes from the other;
* ``ffn_neuron``: made by one projection, consumed by another, with pointwise ops between, at least one not linear
  (or else a low-rank adapter would match).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxcompress.axis import Axis, leaves
from fxcompress.rule import RULES

if TYPE_CHECKING:
    from fxcompress.axes import AxisMap

aten = torch.ops.aten

PROJECTIONS = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_LINEAR_POINTWISE = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.mul.Scalar, aten.div.Scalar),
    *(aten.to.dtype, aten._to_copy.default, aten.dropout.default),
}
_ADDS = {aten.add.Tensor, aten.add_.Tensor}


def read_roles(axes: AxisMap) -> Iterator[tuple[Axis, str]]:
    for node in residual_adds(axes.program.graph):
        for dim in axes.dims.get(node, ()):
            yield from ((axis, "residual") for axis in leaves(dim) if axis not in axes.pinned)
    yield from ((axis, "ffn_neuron") for axis in _ffn_neurons(axes))


def residual_adds(graph: fx.Graph) -> list[fx.Node]:
    """The additions x + f(x): one operand is an ancestor of the other, with a projection on the way."""
    bit = {node: 1 << i for i, node in enumerate(graph.nodes)}
    above: dict[fx.Node, int] = {}  # ancestors, as a set of bits
    behind: dict[fx.Node, int] = {}  # those among them that a projection stands between
    found = []
    for node in graph.nodes:
        inputs = node.all_input_nodes
        above[node] = reduce(or_, (above[n] | bit[n] for n in inputs), 0)
        behind[node] = reduce(or_, (behind[n] for n in inputs), 0)
        if node.target in PROJECTIONS | CONVOLUTIONS:
            behind[node] = above[node]
        if node.target in _ADDS and len(inputs) == 2:
            x, y = inputs
            if bit[x] & behind[y] or bit[y] & behind[x]:
                found.append(node)
    return found


def _ffn_neurons(axes: AxisMap) -> Iterator[Axis]:
    made: set[Axis] = set()
    consumed: set[Axis] = set()
    bent: set[Axis] = set()  # went through a pointwise op that is not linear
    other: set[Axis] = set()  # went through anything else
    for node, dims in axes.dims.items():
        if node.op != "call_function" or not isinstance(dims, tuple):
            continue
        here = {axis for dim in dims for axis in leaves(dim)}
        contracted = {a for r in axes.reductions[node] for a in leaves(axes.dims[r.operand][r.dim])}
        if node.target in PROJECTIONS:
            made |= here - _leading(axes, node)
            consumed |= contracted
        elif node.target not in RULES and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            if node.target not in _LINEAR_POINTWISE and not _scales_only(node):
                bent |= here
        else:
            other |= contracted | (here if _is_computation(node) else set())
    for axis in (made & consumed & bent) - other:
        if not axes.pinned.get(axis):
            yield axis


def _leading(axes: AxisMap, node: fx.Node) -> set[Axis]:
    return {axis for dim in axes.dims[node][:-1] for axis in leaves(dim)}


def _scales_only(node: fx.Node) -> bool:
    """A product of a tensor with a number or a parameter is linear."""
    return (
        node.target in (aten.mul.Tensor, aten.div.Tensor) and sum(n.op != "get_attr" for n in node.all_input_nodes) < 2
    )


def _is_computation(node: fx.Node) -> bool:
    """Not a mere movement of indices."""
    from fxcompress.rules import movement

    return RULES.get(node.target) is None or RULES[node.target].infer.__module__ != movement.__name__
