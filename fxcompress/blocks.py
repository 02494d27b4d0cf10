"""Residual blocks: modules whose output is their input plus something, so that they can be skipped.

Read off the graph: walking back from a module's output along additions must lead to a value from outside the module.
The other operands of those additions are its *branches*: zero is their neutral element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import graph
from fxcompress.errors import CompressError
from fxcompress.program import Program

aten = torch.ops.aten

_CASTS = {aten.to.dtype, aten._to_copy.default}


@dataclass(frozen=True)
class Block:
    """A module that adds to the residual stream: what comes in, what goes out, what is added on the way."""

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
    if len(leaving) != 1:
        raise CompressError(f"{path} cannot be removed: {len(leaving)} values leave it, a residual block has one")
    output = leaving[0]
    node, branches = output, []
    while node in inside:
        if node.target in _CASTS:
            node = node.args[0]
            continue
        if node.target is not aten.add.Tensor or len(node.all_input_nodes) != 2:
            raise CompressError(f"{path} cannot be removed: its output {node.name} is not its input plus something")
        stream, branch = _stream_first(node, inside)
        branches.append((node, branch))
        node = stream
    return Block(path, node, output, tuple(branches))


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
