"""Remove residual blocks, or one part of each: what reads the block's output reads its input.

x -> x + f(norm(x)) -> ...       ->       x -> ...
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch

from fxcompress import blocks, graph
from fxcompress.axes import AxisMap
from fxcompress.axis import leaves
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass, Row
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.statistics import Statistics

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
    """Remove the blocks at the given positions of a model's list of layers.

    layers: positions, negative ones from the end; or globs on module paths (``"model.layers.1?"``).
    part: only the "attention", the "ffn" (dense or of experts) or the "ssm" of each of these layers.
    """

    layers: tuple[int | str, ...] = ()
    part: Literal["attention", "ffn", "ssm"] | None = None

    def __post_init__(self) -> None:
        given = (self.layers,) if isinstance(self.layers, int | str) else tuple(self.layers)
        object.__setattr__(self, "layers", given)
        if not given:
            raise CompressError("RemoveLayers needs layers=, positions like (3, -2) or globs like 'model.layers.1?'")
        if self.part not in (None, "attention", "ffn", "ssm"):
            raise CompressError(f"RemoveLayers: part={self.part!r} is unknown; there are attention, ffn and ssm")

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        stack = self._stack(program)
        chosen = list(dict.fromkeys(path for layer in self.layers for path in self._resolve(layer, stack)))
        if self.part is not None:
            chosen = [self._part(program, path) for path in chosen]
        if set(chosen) >= set(stack):
            raise CompressError(f"RemoveLayers would remove all {len(stack)} layers")
        for path in chosen:
            blocks.read_block(program, path)
        rows = [Row(path, self.part or "layer", 1, 1.0, 1) for path in chosen]
        return Step(self.name, remove=tuple(chosen)), rows

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
