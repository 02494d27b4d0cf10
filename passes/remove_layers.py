"""Remove residual blocks, or one part of each: what reads the block's output reads its input.

x -> x + f(norm(x)) -> ...       ->       x -> ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, TypeAlias, get_args

import torch

from fxcompress import blocks, graph
from fxcompress.axes import AxisMap
from fxcompress.axis import leaves
from fxcompress.errors import CompressError
from fxcompress.layer_scores import LayerScore, Window, importance, watch_of, windows
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.record import Row
from fxcompress.rewrite import rewrite
from fxcompress.statistics import Statistics, Watch

Scorer: TypeAlias = "Callable[[Program], float]"

fxc, aten = torch.ops.fxcompress, torch.ops.aten
_KINDS = {
    fxc.attention.default: "attention",
    aten.scaled_dot_product_attention.default: "attention",
    fxc.ssd_scan.default: "ssm",
    fxc.selective_scan.default: "ssm",
    fxc.gated_delta.default: "ssm",
    fxc.experts.default: "ffn",
}


@dataclass(frozen=True, kw_only=True)
class RemoveLayers(Pass):
    """Remove the blocks at the given positions of a model's list of layers, or those that matter least.

    layers: positions, negative ones from the end; or globs on module paths (``"model.layers.1?"``).
    part: only the "attention", the "ffn" (dense or of experts) or the "ssm" of each of these layers.
    count: so many of ``layers`` (of all that have the part where it names none) go, those of the least ``score``:
    "cosine", "loss", "kl" or "hidden" with calibration (``fxcompress.layer_scores``), or a callable (program) -> float
    of the rewritten program, high is good. contiguous: they go as one run of consecutive layers (Minitron in practice,
    arXiv 2408.11796, section 2), scored together.
    """

    cuts: ClassVar[bool] = False

    layers: tuple[int | str, ...] = ()
    part: Literal["attention", "ffn", "ssm"] | None = None
    count: int | None = None
    score: LayerScore | Scorer = "cosine"
    contiguous: bool = False

    def __post_init__(self) -> None:
        given = (self.layers,) if isinstance(self.layers, int | str) else tuple(self.layers)
        object.__setattr__(self, "layers", given)
        if not given and self.count is None:
            raise CompressError(
                "RemoveLayers needs layers=, positions like (3, -2) or globs like 'model.layers.1?', or count="
            )
        if self.count is not None and self.count < 1:
            raise CompressError(f"RemoveLayers: count={self.count} removes nothing: it is the number of layers that go")
        if self.part not in (None, "attention", "ffn", "ssm"):
            raise CompressError(f"RemoveLayers: part={self.part!r} is unknown; there are attention, ffn and ssm")
        if not callable(self.score) and self.score not in get_args(LayerScore):
            there = ", ".join(get_args(LayerScore))
            raise CompressError(f"RemoveLayers: score={self.score!r} is unknown; there are {there}, or pass a callable")
        if self.count is None and (self.contiguous or self.score != "cosine"):
            raise CompressError("RemoveLayers: score= and contiguous= choose among layers: say how many by count=")

    @property
    def observes(self) -> bool:
        return self.count is not None and not callable(self.score)

    def check(self, program: Program) -> None:
        self._candidates(program)

    def watches(self, program: Program) -> list[Watch]:
        if self.count is None or callable(self.score):
            return []
        score: LayerScore = self.score
        return [watch_of(program, window, score) for window in self._windows(program)]

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        chosen = self._candidates(program) if self.count is None else self._least(program, statistics)
        for path in chosen:
            blocks.read_block(program, path)
        rows = [Row(path, self.part or "layer", 1, 1.0, 1) for path in chosen]
        return Step(self.name, remove=tuple(chosen)), rows

    def _candidates(self, program: Program) -> list[str]:
        """The modules that go, or that may go where ``count`` says how many."""
        stack = self._stack(program)
        found = list(dict.fromkeys(path for layer in self.layers for path in self._resolve(layer, stack)))
        if not found and self.part is not None:
            found = [path for path in stack if self._has_part(program, path)]
        found = found or stack
        if self.part is not None:
            found = [self._part(program, path) for path in found]
        if set(found) >= set(stack) and self.count is None:
            raise CompressError(f"RemoveLayers would remove all {len(stack)} layers")
        if self.count is not None and not self.count < len(stack):
            raise CompressError(f"RemoveLayers: count={self.count} would leave none of the {len(stack)} layers")
        if self.count is not None and self.count > len(found):
            what = f"{len(found)} layers with {self.part}" if self.part else f"{len(found)} layers to choose among"
            raise CompressError(f"RemoveLayers: count={self.count} of {what}")
        return found

    def _windows(self, program: Program) -> list[Window]:
        """What is scored: layers one by one, or runs of them."""
        assert self.count is not None
        return windows(self._candidates(program), self.count if self.contiguous else 1)

    def _least(self, program: Program, statistics: Statistics) -> list[str]:
        """The layers that matter least, in their order."""
        assert self.count is not None
        found = self._windows(program)
        if program.is_meta:  # a dry run: the last ones but one stand for any choice
            values = [-float(i) if i + 1 < len(found) else math.inf for i in range(len(found))]
        else:
            values = [self._importance(program, window, statistics) for window in found]
        order = sorted(range(len(found)), key=values.__getitem__)
        chosen = sorted(order[: 1 if self.contiguous else self.count])
        return [path for i in chosen for path in found[i]]

    def _importance(self, program: Program, window: Window, statistics: Statistics) -> float:
        if not callable(self.score):
            return importance(program, window, self.score, statistics)
        after = program.clone()
        rewrite(after, Step(self.name, remove=window))
        value = float(self.score(after))
        if math.isnan(value):
            raise CompressError(f"RemoveLayers: the score of the model without {', '.join(window)} is NaN")
        return value

    def _has_part(self, program: Program, layer: str) -> bool:
        try:
            self._part(program, layer)
        except CompressError:
            return False
        return True

    def _part(self, program: Program, layer: str) -> str:
        """The module that is this part of a layer: the layer itself where it is nothing else."""
        kinds = _kinds(program)
        for path in sorted((p for p in kinds if p == layer or p.startswith(layer + ".")), key=lambda p: p.count(".")):
            if kinds[path] == {self.part} and _is_block(program, path):
                return path
        raise CompressError(f"RemoveLayers: {layer} has no {self.part} that could be removed")

    def _stack(self, program: Program) -> list[str]:
        """The longest list of modules that are all residual blocks, outermost first."""
        for items in sorted(program.layers().values(), key=len, reverse=True):
            if all(_is_block(program, path) for path in items):
                return items
        raise CompressError("RemoveLayers: the model has no list of residual blocks")

    def _resolve(self, layer: int | str, stack: list[str]) -> list[str]:
        if isinstance(layer, str):
            found = [path for path in stack if fnmatchcase(path, layer)]
            if not found:
                raise CompressError(f"RemoveLayers: no layer like {layer!r}; they are {stack[0]} to {stack[-1]}")
            return found
        if not -len(stack) <= layer < len(stack):
            raise CompressError(f"RemoveLayers: layer {layer} is out of range, the model has {len(stack)}")
        return [stack[layer]]


def _kinds(program: Program) -> dict[str, set[str]]:
    """What each module does, by the ops in it."""
    axes = program.get(AxisMap)
    out: dict[str, set[str]] = {}
    for node in graph.calls(program.graph):
        kind = _KINDS.get(node.target) or ("ffn" if _makes_neurons(axes, node) else None)
        for path in graph.module_paths(node) if kind else ():
            out.setdefault(path, set()).add(str(kind))
    return out


def _makes_neurons(axes: AxisMap, node: torch.fx.Node) -> bool:
    dims = axes.dims[node] if isinstance(axes.dims.get(node), tuple) else ()
    return any("ffn_neuron" in axes.roles.get(axis, ()) for dim in dims for axis in leaves(dim))


def _is_block(program: Program, path: str) -> bool:
    try:
        blocks.read_block(program, path)
    except CompressError:
        return False
    return True
