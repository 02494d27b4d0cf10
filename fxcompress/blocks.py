"""Residual blocks: modules that only add something to the residual stream, so that they can be skipped.

Read off the graph. Either walking back from a module's output along additions leads to a value from outside the module,
as with a whole layer: the other operands of those additions are its *branches*, and zero is their neutral element. Or
all that becomes of its output is a branch of one addition outside, as with the attention or the feed-forward network
of a layer. Or it gives the stream and its last branch, and whoever comes next adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import graph
from fxcompress.axes import AxisMap
from fxcompress.axis import leaves
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.rule import RULES, shape_of

aten = torch.ops.aten

_NORMS = {aten.mean.dim, aten.layer_norm.default, aten.rms_norm.default}


@dataclass(frozen=True)
class Block:
    """What adds to the residual stream: the stream before and after it, and what is added on the way."""

    path: str
    source: fx.Node
    output: fx.Node
    branches: tuple[tuple[fx.Node, fx.Node], ...]  # (addition, the operand that is added to the stream)


def read_block(program: Program, path: str) -> Block:
    """The module at ``path`` as a residual block. Raises CompressError where it is none, saying why."""
    inside = {node for node in program.graph.nodes if path in graph.module_paths(node)}
    if not inside:
        raise CompressError(f"no module {path!r} in the graph; `fxcompress inspect` lists the blocks of a model")
    used = [node for node in inside if any(user not in inside for user in node.users)]
    leaving = [node for node in used if isinstance(node.meta.get("val"), torch.Tensor) and node.op == "call_function"]
    if len(leaving) == 2 and (left_open := _with_last_addition_outside(path, leaving, inside)):
        return left_open
    if len(leaving) != 1:
        raise CompressError(f"{path} cannot be removed: {len(leaving)} values leave it, a residual block has one")
    block = _with_stream_inside(path, leaving[0], inside) or _as_branch(program, path, leaving[0], inside)
    if block is None:
        raise CompressError(f"{path} cannot be removed: its output {leaving[0].name} is not added to anything")
    return block


def _with_stream_inside(path: str, output: fx.Node, inside: set[fx.Node]) -> Block | None:
    """The module's output is its input plus something."""
    node, branches = output, []
    while node in inside:
        if node.target in graph.SAME_VALUES:
            node = node.args[0]
            continue
        if node.target is not aten.add.Tensor or len(node.all_input_nodes) != 2:
            return None
        stream, branch = _stream_first(node, inside)
        branches.append((node, branch))
        node = stream
    if not branches or shape_of(node.meta["val"]) != shape_of(output.meta["val"]):
        return None
    return Block(path, node, output, tuple(branches))


def _with_last_addition_outside(path: str, leaving: list[fx.Node], inside: set[fx.Node]) -> Block | None:
    """All that becomes of the module's two outputs is their sum, which leads back along additions to its input.

    That input may be such a sum itself, of what the module before has given: then the stream begins with it.
    """
    output, around = _sum_outside(leaving, inside)
    if output is None:
        return None
    node = source = output
    branches = []
    while node in around:
        if node.target in graph.SAME_VALUES:
            node = node.args[0]
        elif node.target is aten.add.Tensor and around.isdisjoint(map(graph.same_value, node.all_input_nodes)):
            break
        elif node.target is aten.add.Tensor and len(node.all_input_nodes) == 2:
            node, branch = _stream_first(addition := node, around)
            branches.append((addition, branch))
        else:
            return None
        if node.meta["val"].dtype == output.meta["val"].dtype:  # readers of the output will read it
            source = node
    return Block(path, source, output, tuple(branches))


def _sum_outside(leaving: list[fx.Node], inside: set[fx.Node]) -> tuple[fx.Node | None, set[fx.Node]]:
    """The one addition that reads both values and is all that reads them; and what is inside or on the way to it."""
    around, readers, todo = set(inside), [], list(leaving)
    while todo:
        for user in todo.pop().users.keys() - around:
            if user.target in graph.SAME_VALUES:
                around.add(user)
                todo.append(user)
            else:
                readers.append(user)
    one = len(readers) == 2 and readers[0] is readers[1] and readers[0].target is aten.add.Tensor
    return (readers[0], around | {readers[0]}) if one else (None, around)


def _as_branch(program: Program, path: str, output: fx.Node, inside: set[fx.Node]) -> Block | None:
    """All that becomes of the module's output, by norms, scales and the like, is added to the residual stream."""
    axes = program.get(AxisMap)
    made, visited = {output}, {output}
    for node in list(output.graph.nodes):
        if node in inside or not made & set(node.all_input_nodes):
            continue
        visited.add(node)
        if any(user not in visited for earlier in made for user in earlier.users if user not in inside):
            made.add(node)
            continue
        mine = [n for n in node.all_input_nodes if n in made]
        others = [n for n in node.all_input_nodes if n not in made]
        if node.target is aten.add.Tensor and len(mine) == len(others) == 1 and others[0].op == "call_function":
            width = axes.roles.keys() & set(leaves(axes.dims[node][-1]))
            whole = shape_of(others[0].meta["val"]) == shape_of(node.meta["val"])
            fits = whole and any("residual" in axes.roles[axis] for axis in width)
            return Block(path, others[0], node, ((node, mine[0]),)) if fits else None
        if node.target in RULES and not RULES[node.target].moves and node.target not in _NORMS:
            return None
        made.add(node)
    return None


def skip(program: Program, path: str) -> None:
    """Let what the block would add be nothing: its readers read its input. The caller refreshes the program."""
    block = read_block(program, path)
    block.output.replace_all_uses_with(block.source)


def _stream_first(node: fx.Node, inside: set[fx.Node]) -> tuple[fx.Node, fx.Node]:
    """The operand that carries the stream: the one that is an ancestor of the other, or comes from outside."""
    x, y = node.all_input_nodes
    if x not in inside or (y in inside and _is_ancestor(x, y, inside)):
        return x, y
    return y, x


def _is_ancestor(x: fx.Node, y: fx.Node, inside: set[fx.Node]) -> bool:
    seen, stack = set(), [y]
    while stack:
        node = stack.pop()
        if node is x:
            return True
        if node in inside and node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return False
