"""Which layers go where some have to: those that matter least come first in one order, for any number of layers.

The order is by a score of each layer alone in the whole model (``fxcompress.layer_scores``), or one of the caller's
own. Runs of consecutive layers, which were found better where depth alone is cut (Minitron in practice, arXiv
2408.11796, section 2), are no such order: ``RemoveLayers(count=..., contiguous=True)`` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, get_args

from torch import fx

from fxcompress import blocks
from fxcompress.batches import Batch
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.layer_scores import LayerScore, importance, watch_of
from fxcompress.passes import RemoveLayers
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.statistics import Statistics

LayerOrder: TypeAlias = "str | Sequence[int] | Callable[[Program], Sequence[int]]"


def layer_order(
    program: Program, asked: LayerOrder, batches: Sequence[Batch] = (), progress: Progress = silent
) -> tuple[int, ...]:
    """Positions of all layers, the first to go first; none where the model has no list of residual blocks.

    asked: "cosine", "loss", "kl" or "hidden", which need batches; all positions; or a function that finds them.
    Raises CompressError where that is no order of all layers.
    """
    paths = stack(program)
    if isinstance(asked, str):
        return _by_score(program, paths, asked, batches, progress)
    order: Any = asked(program) if callable(asked) else asked
    if sorted(order) != list(range(len(paths))):
        raise CompressError(
            f"layer_order={quoted(order)} does not name each of the {len(paths)} layers once, from 0 on"
        )
    return tuple(order)


def check_order(asked: Any) -> None:
    """Raise CompressError for a score that is not there."""
    if isinstance(asked, str) and asked not in get_args(LayerScore):
        there = ", ".join(get_args(LayerScore))
        raise CompressError(
            f"layer_order={quoted(asked)} is unknown; there are {there}, or give the positions in order"
        )


def _by_score(
    program: Program, paths: Sequence[str], score: Any, batches: Sequence[Batch], progress: Progress
) -> tuple[int, ...]:
    statistics = gather(program, [watch_of(program, (path,), score) for path in paths], batches, progress)
    values = [importance(program, (path,), score, statistics) for path in paths]
    return tuple(sorted(range(len(paths)), key=values.__getitem__))


def stack(program: Program) -> list[str]:
    """The paths of the layers that RemoveLayers counts; none where the model has no list of residual blocks."""
    try:
        step, _ = RemoveLayers(layers=(0,)).decide(program, Statistics())
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
