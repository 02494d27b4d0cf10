"""Parameters that are matrices which activations are multiplied by: what weight pruning works on.

    linear(x, W)        y = x Wᵀ      a matrix is (outputs, columns); its columns are what is contracted with x
    addmm(b, x, W)      y = x W + b   the same, stored the other way round
    matmul(W, x)        y = W x
    experts(x, ...)     a matrix for each expert, with the tokens that are routed to it

Which dim of which operand is contracted is what the rule of the op says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxcompress.axes import AxisMap
from fxcompress.axis import leaves
from fxcompress.kernels.activations import activation_named
from fxcompress.kernels.experts.reference import neurons
from fxcompress.layout import Tokens
from fxcompress.program import Program
from fxcompress.roles import PROJECTIONS
from fxcompress.rule import bind

EXPERTS = torch.ops.fxcompress.experts.default


@dataclass(frozen=True)
class Source:
    """Values that a matrix is multiplied with: a dim of a node's, or what an experts op has for one of its experts."""

    node: fx.Node
    dim: int = -1
    expert: int | None = None
    operand: str = ""  # of the experts op, "up" or "down"


@dataclass(frozen=True)
class Projection:
    """A parameter that is matrices. ``calls``: those that use it; ``sources``: of each matrix, one for each call.

    dim: that of the parameter which is contracted, -1 or -2; columns: its size. dense: why it is left alone unless it
    is named; without sources it cannot be pruned at all.
    """

    name: str
    dim: int
    calls: tuple[fx.Node, ...]
    sources: tuple[tuple[Source, ...], ...]
    dense: str = ""
    columns: int = 0

    def matrices(self, value: Tensor) -> Tensor:
        """A parameter's value as (matrices, outputs, columns), a view of it."""
        stacked = value if value.dim() == 3 else value[None]
        return stacked if self.dim == -1 else stacked.transpose(-1, -2)


def projections(program: Program) -> list[Projection]:
    """All parameters of a program that are matrices, in the order of their first use."""
    axes, head = program.get(AxisMap), _head(program)
    parameters = dict(program.parameters())
    found = []
    for name in program.used_names():
        users = [user for node in program.graph.find_nodes(op="get_attr", target=name) for user in node.users]
        uses = [_use(axes, user, name) for user in users] if name in parameters else []
        multiplied = [(user, *use) for user, use in zip(users, uses, strict=False) if use is not None]
        if not multiplied:
            continue
        calls, dims = tuple(user for user, _, _ in multiplied), {dim for _, dim, _ in multiplied}
        dim, sources, dense = dims.pop(), tuple[tuple[Source, ...], ...](), "it is multiplied from both sides"
        if not dims:
            sources = tuple(zip(*(s for _, _, s in multiplied), strict=True))
            dense = _why_dense(axes, head, users, calls, name, dim)
        found.append(Projection(name, dim, calls, sources, dense, parameters[name].shape[dim]))
    return found


def layer_of(program: Program, name: str) -> str:
    """The innermost repeated module that a parameter lies in; its own name where there is none."""
    paths = [path for items in program.layers().values() for path in items if name.startswith(path + ".")]
    return max(paths, key=len, default=name)


def inputs_at(
    call: fx.Node, wanted: Collection[Source], value: Callable[[fx.Node], Tensor], tokens: Tokens, mask: Tensor | None
) -> Iterator[tuple[Source, Tensor]]:
    """What the matrices of a call are multiplied with when it runs, (tokens, columns), padding left out.

    value: of a node that the call reads. mask: which tokens of the batch count, (sequences, tokens).
    """
    if call.target is EXPERTS:
        yield from _routed(call, wanted, value, tokens, mask)
        return
    for source in wanted:
        if source.node in call.all_input_nodes:
            split, counts = tokens.split(source.node, source.dim, value(source.node), mask)
            yield source, split[counts]


def _use(axes: AxisMap, call: fx.Node, name: str) -> tuple[int, list[Source]] | None:
    """The contracted dim of a parameter in a call, and what its matrices are multiplied with; None for other uses."""
    if call.target is EXPERTS:
        operand = next((o for o in ("up", "down") if bind(call).get(o) in _states(call, name)), None)
        count = axes.program.state[name].shape[0]
        return None if operand is None else (-1, [Source(call, -1, e, operand) for e in range(count)])
    if call.target not in PROJECTIONS or axes.program.state[name].dim() != 2:
        return None
    contracted = {r.operand: r.dim for r in axes.reductions[call] if r.neutral == 0.0}
    weight = next((node for node in contracted if node in _states(call, name)), None)
    other = next((node for node in contracted if node is not weight), None)
    if weight is None or other is None or other.op == "get_attr":
        return None
    return contracted[weight] % 2 - 2, [Source(other, contracted[other])]


def _states(call: fx.Node, name: str) -> list[fx.Node]:
    return [node for node in call.all_input_nodes if node.op == "get_attr" and node.target == name]


def _why_dense(
    axes: AxisMap, head: fx.Node | None, users: list[fx.Node], calls: tuple[fx.Node, ...], name: str, dim: int
) -> str:
    """Why a matrix is left alone unless it is named."""
    others = [user for user in users if user not in calls]
    if others:
        return f"{others[0].target} reads it too"
    if head in calls:
        return "it gives the output of the model"
    rows = axes.state[name][-1 if dim == -2 else -2]
    if any("expert" in axes.roles.get(axis, ()) for axis in leaves(rows)):
        return "it routes tokens to experts"
    return ""


def _head(program: Program) -> fx.Node | None:
    """The projection that gives the first output: nothing but ops of one value, and of sizes, come after it."""
    node = next(n for n in program.graph.nodes if n.op == "output").args[0][0]
    while isinstance(node, fx.Node) and node.target not in PROJECTIONS:
        before = [
            n for n in node.all_input_nodes if n.op == "call_function" and isinstance(n.meta.get("val"), torch.Tensor)
        ]
        node = before[0] if len(before) == 1 else None
    return node


def _routed(
    call: fx.Node, wanted: Collection[Source], value: Callable[[fx.Node], Tensor], tokens: Tokens, mask: Tensor | None
) -> Iterator[tuple[Source, Tensor]]:
    """For every expert the tokens that are routed to it, and what its neurons make of them."""
    given: Mapping[str, object] = bind(call)
    x, index = (_at_tokens(given[name], value, tokens, mask) for name in ("x", "index"))  # type: ignore[arg-type]
    up, bias = given["up"], given.get("up_bias")
    ups, biases = value(up), None if bias is None else value(bias)  # type: ignore[arg-type]
    act, gated = activation_named(str(given["activation"])), bool(given["gated"])
    for source in sorted((s for s in wanted if s.node is call), key=lambda s: (s.expert, s.operand)):
        mine = x[index.eq(source.expert or 0).any(-1)]
        if source.operand == "down":
            mine = neurons(mine, ups[source.expert], None if biases is None else biases[source.expert], gated, act)
        yield source, mine


def _at_tokens(node: fx.Node, value: Callable[[fx.Node], Tensor], tokens: Tokens, mask: Tensor | None) -> Tensor:
    split, counts = tokens.split(node, -1, value(node), mask)
    return split[counts]
