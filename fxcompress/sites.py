"""Where the activations of a group are: at what is contracted over its axis, at what projections give, within a mixer.

input     what projections and scans contract over the axis: FFN neurons before the second linear
output    what projections give along the axis: FFN neurons before the activation function
x, z      of a state-space mixer: its input before the convolution, and its gate
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import fx

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import leaves
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.rule import RULES, bind

fxc = torch.ops.fxcompress
_CONVOLUTION = fxc.causal_conv1d.default
_SCANS = (fxc.ssd_scan.default, fxc.selective_scan.default, fxc.gated_delta.default)
_MIXING = (_CONVOLUTION, *_SCANS)

Site: TypeAlias = "tuple[fx.Node, int]"  # a value, and its dim that has the axis


class Activations:
    """The values that depend on a program's inputs, as an analysis: others are weights, whatever was made of them."""

    def __init__(self, program: Program) -> None:
        self.nodes: set[fx.Node] = set()
        for node in program.graph.nodes:
            if node.op == "placeholder" or self.nodes.intersection(node.all_input_nodes):
                self.nodes.add(node)


def consumers(axes: AxisMap, group: Group) -> list[Site]:
    """The activations that projections and scans contract over a group's axis and those outside it."""
    found: dict[Site, None] = {}
    activations = axes.program.get(Activations).nodes
    for reductions in axes.reductions.values():
        for r in reductions:
            here = set(leaves(axes.dims[r.operand][r.dim]))
            if r.neutral == 0.0 and r.operand in activations and _along(axes, group) <= here:
                found[r.operand, r.dim] = None
    return list(found)


def producers(axes: AxisMap, group: Group) -> list[Site]:
    """What projections give along the axis: the weight has it, and something else is contracted."""
    found, activations = [], axes.program.get(Activations).nodes
    for node, reductions in axes.reductions.items():
        weights = [n for n in node.all_input_nodes if n.op == "get_attr" and _has(axes, n, group)]
        contracts = any(r.neutral == 0.0 and r.operand in activations for r in reductions)
        if weights and contracts and node.target not in _MIXING:
            found += _at(axes, node, group)
    return found


def before_convolution(axes: AxisMap, group: Group) -> list[Site]:
    """What the convolution reads of the axis; what the scan reads where there is no convolution."""
    convolved = [site for n in _calls(axes, (_CONVOLUTION,)) for site in _at(axes, bind(n)["x"], group)]
    return convolved or [site for n in _calls(axes, _SCANS) for site in _at(axes, n.all_input_nodes[0], group)]


def gates(axes: AxisMap, group: Group) -> list[Site]:
    """The parts of what a mixer's projections give along the axis that neither the convolution nor the scan mixes."""
    found = []
    for node, _ in producers(axes, group):
        ends = [(end, used) for end in _moved(node) if (used := [user for user in end.users if not _moves(user)])]
        if any(user.target in _MIXING for _, used in ends for user in used):
            gating = [end for end, used in ends if not any(_mixes(user, end) for user in used)]
            found += [site for end in gating for site in _at(axes, end, group)]
    return found


SITES: dict[str, Callable[[AxisMap, Group], list[Site]]] = {
    "input": consumers,
    "output": producers,
    "x": before_convolution,
    "z": gates,
}


def found_at(site: str, axes: AxisMap, group: Group) -> list[Site]:
    """The activations of a group at a site. Raises CompressError where there are none."""
    found = SITES[site](axes, group)
    if not found:
        raise CompressError(f"{group.key}: {_NONE[site]}; score it by 'magnitude'")
    return found


_NONE = {
    "input": "no activation is contracted over this axis",
    "output": "no projection gives this axis",
    "x": "no state-space mixer has this axis before its scan",
    "z": "no state-space mixer has a gate along this axis",
}


def _along(axes: AxisMap, group: Group) -> set:
    return {group.axis, *axes.outer[group.axis]}


def _has(axes: AxisMap, node: fx.Node, group: Group) -> bool:
    dims = axes.dims.get(node)
    return isinstance(dims, tuple) and any(group.axis in leaves(dim) for dim in dims)


def _at(axes: AxisMap, node: fx.Node, group: Group) -> list[Site]:
    """The dim of a value that has the axis, and all those outside it."""
    dims = axes.dims.get(node)
    if not isinstance(dims, tuple):
        return []
    return [(node, i) for i, dim in enumerate(dims) if _along(axes, group) <= set(leaves(dim))][:1]


def _calls(axes: AxisMap, targets: tuple) -> Iterator[fx.Node]:
    return (node for node in axes.reductions if node.target in targets)


def _moves(node: fx.Node) -> bool:
    return node.target in RULES and RULES[node.target].moves


def _mixes(user: fx.Node, value: fx.Node) -> bool:
    """Does a call mix the value over tokens? A scan may take its gate as an operand."""
    return user.target in _MIXING and bind(user).get("z") is not value


def _moved(node: fx.Node) -> Iterator[fx.Node]:
    """The value and what movement makes of it."""
    yield node
    for user in node.users:
        if _moves(user):
            yield from _moved(user)
