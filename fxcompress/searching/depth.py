"""Which layers go where some have to: from the last but one backwards.

The first and the last layers matter most, and a run of layers before the last one is what Minitron in practice found
best to drop (arXiv 2408.11796, section on depth). An order of one's own can be given instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import fx

from fxcompress import blocks
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.passes import RemoveLayers
from fxcompress.program import Program

LayerOrder: TypeAlias = "Sequence[int] | Callable[[Program], Sequence[int]] | None"


def layer_order(program: Program, asked: LayerOrder = None) -> tuple[int, ...]:
    """Positions of all layers, the first to go first; none where the model has no list of residual blocks.

    asked: an order of one's own, or a function that finds one. Raises CompressError where it is no order of all layers.
    """
    count = len(stack(program))
    if asked is None:
        return (*range(count - 2, -1, -1), *([count - 1] if count else []))
    order = tuple(asked(program)) if callable(asked) else tuple(asked)
    if sorted(order) != list(range(count)):
        raise CompressError(f"layer_order={quoted(order)} does not name each of the {count} layers once, from 0 on")
    return order


def stack(program: Program) -> list[str]:
    """The paths of the layers that RemoveLayers counts; none where the model has no list of residual blocks."""
    try:
        step, _ = RemoveLayers(layers=(0,)).decide(program, {})
    except CompressError:
        return []
    container, _, _ = step.remove[0].rpartition(".")
    return program.layers()[container]


def alive(program: Program, removed: Sequence[str]) -> list[fx.Node]:
    """The nodes that the outputs still read when some blocks are skipped."""
    skipped = [blocks.read_block(program, path) for path in removed]
    instead = {block.output: block.source for block in skipped}
    todo = [node for node in program.graph.nodes if node.op == "output"]
    seen: dict[fx.Node, None] = {}
    while todo:
        for node in todo.pop().all_input_nodes:
            while node in instead:
                node = instead[node]
            if node not in seen:
                seen[node] = None
                todo.append(node)
    return list(seen)
