"""What an axis is, read off the ops around it and never off names.

Scans, attention and experts name theirs by the letters of their rules. The others are shapes of the graph:

* ``residual``: an axis of a sum x + f(x), where one operand of the addition comes from the other;
* ``ffn_neuron``: made by one projection and consumed by another, with something between that is not linear;
* ``latent_rank``: the same with nothing between but norms, scales and movement, as in a low-rank product;
* ``conv_channel``: made by a convolution and consumed by one or by a projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxcompress.axis import Axis, leaves
from fxcompress.graph import same_value
from fxcompress.rule import AVERAGE, RULES, Reduction

if TYPE_CHECKING:
    from fxcompress.axes import AxisMap

aten = torch.ops.aten

PROJECTIONS = {
    *(aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default),
    torch.ops.fxcompress.experts.default,  # from what they read to what they give
}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_LINEAR_POINTWISE = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.mul.Scalar, aten.div.Scalar),
    *(aten.to.dtype, aten._to_copy.default, aten.dropout.default),
}
_NORMS = {
    *(aten.mean.dim, aten.layer_norm.default, aten.rms_norm.default, aten.batch_norm.default),
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
}
_ADDS = {aten.add.Tensor, aten.add_.Tensor}


def read_roles(axes: AxisMap) -> Iterator[tuple[Axis, str]]:
    residual = {axis for node in residual_adds(axes.program.graph) for dim in axes.dims[node] for axis in leaves(dim)}
    ways = _Ways(axes)
    for axis in residual - axes.pinned.keys():
        yield axis, "residual"
    for axis in ways.inner - residual - axes.pinned.keys():
        yield axis, "conv_channel" if axis in ways.convolved else "ffn_neuron" if axis in ways.bent else "latent_rank"


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
            x, y = map(same_value, inputs)  # a sum may be formed in another dtype than the stream is kept in
            if bit[x] & behind[y] or bit[y] & behind[x]:
                found.append(node)
    return found


class _Ways:
    """What each axis goes through between the ops that make and consume it."""

    def __init__(self, axes: AxisMap) -> None:
        self.axes = axes
        self.made: set[Axis] = set()
        self.convolved: set[Axis] = set()  # made by a convolution
        self.consumed: set[Axis] = set()
        self.bent: set[Axis] = set()  # went through a pointwise op that is not linear in it
        self.other: set[Axis] = set()  # went through anything else but norms
        for node, dims in axes.dims.items():
            if node.op == "call_function" and isinstance(dims, tuple):
                self._visit(node, {axis for dim in dims for axis in leaves(dim)})

    @property
    def inner(self) -> set[Axis]:
        return ((self.made | self.convolved) & self.consumed) - self.other

    def _visit(self, node: fx.Node, here: set[Axis]) -> None:
        reductions = self.axes.reductions[node]
        contracted = {a for r in reductions for a in self._leaves(r)}
        if node.target in PROJECTIONS:
            read = {a for r in reductions if r.operand.op != "get_attr" for a in self._leaves(r)}
            made = set(leaves(self.axes.dims[node][-1]))
            self.made, self.consumed = self.made | made, self.consumed | read
            self.other |= contracted - read - made  # the experts themselves, and what is inside them
        elif node.target in CONVOLUTIONS:
            through = {axis for dim in self.axes.dims[node.all_input_nodes[0]] for axis in leaves(dim)}
            self.convolved |= here - through
            self.consumed |= contracted
        elif node.target not in RULES and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            if node.target not in _LINEAR_POINTWISE and not self._is_within_a_norm(node):
                self.bent |= here - self._scaled(node)
        elif node.target not in _NORMS and not (node.target in RULES and RULES[node.target].moves):
            self.other |= contracted | here

    def _leaves(self, reduction: Reduction) -> Iterator[Axis]:
        return leaves(self.axes.dims[reduction.operand][reduction.dim])

    def _is_within_a_norm(self, node: fx.Node) -> bool:
        """Squares that are only averaged."""
        users = list(node.users)
        return bool(users) and all(any(r.neutral == AVERAGE for r in self.axes.reductions.get(u, ())) for u in users)

    def _scaled(self, node: fx.Node) -> set[Axis]:
        """The axes that a product has in one operand that is no parameter: it is linear along them."""
        if node.target not in (aten.mul.Tensor, aten.div.Tensor) or len(node.all_input_nodes) < 2:
            return set()
        x, y = (set() if n.op == "get_attr" else self._axes_of(n) for n in node.all_input_nodes)
        return x ^ y

    def _axes_of(self, node: fx.Node) -> set[Axis]:
        return {axis for dim in self.axes.dims[node] for axis in leaves(dim)}
