"""Why two parameters are cut together: the couplings of an axis as a graph, and a shortest path as the answer.

    gate_proj.weight[0] - linear (gate_proj) - silu - mul - linear (down_proj) - down_proj.weight[1]

Which op ties what is found by asking every op's rule once more, alone and on fresh dims: what shares an axis then was
tied by this op and by no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx
from torch import fx

from fxcompress import graph
from fxcompress.axes import AxisMap, Group, Slot, infer, values_of
from fxcompress.axis import Axis, Dim, Dims, Equations, factors, leaves, size
from fxcompress.errors import CompressError
from fxcompress.rule import Call, op_name

Place: TypeAlias = "tuple[fx.Node, int, int]"  # (node, which of its tensors, dim)
VALUES = -1  # in the place of a dim: what the tensor's values point into


def coupling_graph(axes: AxisMap, group: Group | None = None) -> nx.Graph:
    """The parameters and ops through which a group's axis runs; all groups together where none is given.

    Nodes are slots of parameters (``"lm_head.weight[0]"``; attributes kind="parameter", name, dim) and ops by the names
    of their graph nodes (kind="op", op, module). Where an axis runs through an op along two dims that this op does not
    tie, they are two nodes. An edge goes from what has the axis to the op that tied it; its ``by`` names the op.
    """
    ties = list(_ties(axes))
    couplings: nx.Graph = nx.Graph()
    for one in axes.groups if group is None else [group]:
        _add_group(couplings, axes, one, ties)
    return couplings


def why_tied(axes: AxisMap, a: Slot, b: Slot) -> list[str]:
    """The shortest path of couplings between two slots, a line for each stop.

    Raises CompressError where they have no group in common.
    """
    shared = [g for g in axes.groups if a in g.slots and b in g.slots]
    if not shared:
        raise CompressError(f"{a} and {b} are not tied: no group has both")
    return path(coupling_graph(axes, shared[0]), a, b)


def path(couplings: nx.Graph, a: Slot, b: Slot) -> list[str]:
    """The shortest path between two slots of a group's coupling graph, a line for each stop."""
    if not nx.has_path(couplings, str(a), str(b)):  # no op ties them, but what is passed in
        return [str(a), "the values of one input", str(b)]
    return [_say(couplings, stop) for stop in nx.shortest_path(couplings, str(a), str(b))]


def _say(couplings: nx.Graph, stop: str) -> str:
    """A parameter by its slot; an op with its module where it reads a parameter there."""
    facts = couplings.nodes[stop]
    if facts["kind"] == "parameter":
        return stop
    reads = any(couplings.nodes[other]["kind"] == "parameter" for other in couplings[stop])
    return f"{facts['op']} ({facts['module']})" if reads and facts["module"] else facts["op"]


@dataclass(frozen=True)
class _Tie:
    """Dims that one op ties: its operands' and its own."""

    op: fx.Node
    places: tuple[Place, ...]


def _ties(axes: AxisMap) -> Iterator[_Tie]:
    """What each op ties, in the order of the graph."""
    for node in axes.program.graph.nodes:
        if node.op != "call_function" or node not in axes.dims:
            continue
        local = {n: _fresh(axes.dims[n]) for n in node.all_input_nodes if n in axes.dims}
        values = {n: _fresh_values(axes.values.get(n)) for n in node.all_input_nodes}
        call = Call(node, local, Equations(), values=values)
        local[node] = infer(call, node.meta["val"])
        values[node] = values_of(call, local[node])
        found: dict[Axis, dict[Place, None]] = {}
        for place, dim in [*_dims_at(local), *_values_at(values)]:
            for axis in leaves(dim):
                found.setdefault(axis, {})[place] = None
        yield from (_Tie(node, tuple(places)) for places in found.values() if len(places) > 1)


def _dims_at(dims: Mapping[fx.Node, Any]) -> Iterator[tuple[Place, Dim]]:
    for node, several in dims.items():
        for item, tensor in enumerate(_tensors(several)):
            yield from (((node, item, i), dim) for i, dim in enumerate(tensor))


def _values_at(values: Mapping[fx.Node, Any]) -> Iterator[tuple[Place, Dim]]:
    """What index tensors point into, at a place of its own beside their dims."""
    for node, several in values.items():
        for item, dim in enumerate(several if isinstance(several, list) else [several]):
            if isinstance(dim, tuple):
                yield (node, item, VALUES), dim


def _fresh_values(values: Any) -> Any:
    if isinstance(values, list):
        return [_fresh_values(item) for item in values]
    return _fresh((values,))[0] if isinstance(values, tuple) else None


def _fresh(dims: Dims | list[Dims]) -> Dims | list[Dims]:
    """Dims of the same sizes of which nothing is known; of those sized at run time, only that they are products."""
    if isinstance(dims, list):
        return [_fresh(tensor) for tensor in dims]  # type: ignore[misc]
    sizes = [[size(dim)] if isinstance(size(dim), int) else [a.size for a in factors(dim)] for dim in dims]
    return tuple(tuple(Axis(n) for n in terms if n != 1) for terms in sizes)


def _tensors(dims: Dims | list[Dims]) -> list[Dims]:
    return dims if isinstance(dims, list) else [dims]


def _add_group(couplings: nx.Graph, axes: AxisMap, group: Group, ties: Sequence[_Tie]) -> None:
    for slot in group.slots:
        couplings.add_node(str(slot), kind="parameter", name=slot.name, dim=slot.dim)
    makers: dict[Place, str] = {}  # what an op returns -> the node that stands for the op there
    times: dict[fx.Node, int] = {}
    for tie in ties:
        if not all(group.axis in leaves(_dim_at(axes, place)) for place in tie.places):
            continue
        op, again = tie.op, times.get(tie.op, 0)
        name = f"{op.name}:{again}" if again else op.name
        times[op] = again + 1
        couplings.add_node(name, kind="op", op=_word(op), module=graph.module_path(op))
        for place in tie.places:
            if place[0] is op:
                makers[place] = name
            elif (source := _source(makers, place)) is not None:
                couplings.add_edge(source, name, by=f"{op.name} ({op_name(op.target)})")


def _dim_at(axes: AxisMap, place: Place) -> Dim:
    node, item, i = place
    if i == VALUES:
        values = axes.values[node]
        return values[item] if isinstance(values, list) else values
    return _tensors(axes.dims[node])[item][i]


def _source(makers: dict[Place, str], place: Place) -> str | None:
    """The node that an operand comes from; None for an input, or where an op without a rule made it."""
    node, _, dim = place
    if node.op != "get_attr":
        return makers.get(place)
    return str(Slot(str(node.target), dim))


def _word(node: fx.Node) -> str:
    """``aten.mul.Tensor`` is a mul."""
    return op_name(node.target).split(".")[1] if "." in op_name(node.target) else op_name(node.target)
