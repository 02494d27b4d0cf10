"""Remove whole residual blocks: what reads the block's output reads its input.

x -> x + f(norm(x)) -> ...       ->       x -> ...
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fxcompress import blocks
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass, Row
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.score import Statistics


@dataclass(frozen=True, kw_only=True)
class RemoveLayers(Pass):
    """Remove the blocks at the given positions of a model's list of layers.

    layers: positions, negative ones from the end; or globs on module paths (``"model.layers.1?"``).
    """

    layers: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        given = (self.layers,) if isinstance(self.layers, int | str) else tuple(self.layers)
        object.__setattr__(self, "layers", given)
        if not given:
            raise CompressError("RemoveLayers needs layers=, positions like (3, -2) or globs like 'model.layers.1?'")

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        stack = self._stack(program)
        chosen = list(dict.fromkeys(path for layer in self.layers for path in self._resolve(layer, stack)))
        if len(chosen) == len(stack):
            raise CompressError(f"RemoveLayers would remove all {len(stack)} layers")
        for path in chosen:
            blocks.read_block(program, path)
        rows = [Row(path, "layer", 1, 1.0, 1) for path in chosen]
        return Step(self.name, remove=tuple(chosen)), rows

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


def _is_block(program: Program, path: str) -> bool:
    try:
        blocks.read_block(program, path)
    except CompressError:
        return False
    return True
