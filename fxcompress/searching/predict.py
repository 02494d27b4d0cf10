"""The footprints of cut models from their sizes alone, thousands at once.

A tensor has as many elements as the product of its dims, and a dim is a sum of products of axes. With a symbol for each
axis that is searched, the counts of a model are polynomials: they are added up once for each number of layers, and then
evaluated on arrays of sizes. What they say is what the rewritten model has, to the element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import sympy

from fxcompress.axis import Axis, Size
from fxcompress.memory import Footprint
from fxcompress.program import Program
from fxcompress.searching.depth import alive, stack
from fxcompress.searching.space import LAYERS, Space

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class Predictor:
    """Footprints of the candidates of a space on a program."""

    def __init__(self, program: Program, space: Space) -> None:
        self.program = program
        self.space = space
        self.cut = [axis for axis in space.choices if axis.name != LAYERS]
        self.stack = stack(program)
        self._by_layers: dict[int, Footprint] = {}  # whose counts are functions of the indices in a row of each axis

    def footprint(self, layers: int, sizes: Mapping[str, Array]) -> Footprint:
        """With so many layers, and an array of sizes for each other axis: the counts are arrays of the same shape."""
        if layers not in self._by_layers:
            self._by_layers[layers] = self._of_depth(layers)
        counts = [np.asarray(axis.count(sizes[axis.name]), dtype=np.int64) for axis in self.cut]
        shape = np.broadcast_shapes((1,), *(count.shape for count in counts))
        return self._by_layers[layers].map(lambda function: np.broadcast_to(function(*counts), shape))

    def _of_depth(self, layers: int) -> Footprint:
        symbols = {axis.name: sympy.Symbol(axis.name) for axis in self.cut}
        symbol_of = {group.axis: symbols[axis.name] for axis in self.cut for group in axis.groups}

        def count(axis: Axis) -> Size:
            return symbol_of.get(axis, axis.size)

        removed = [self.stack[i] for i in self.space.removed(layers)] if self.space[LAYERS] else []
        symbolic = Footprint.of(self.program, count, alive(self.program, removed))
        return symbolic.map(lambda polynomial: _function(list(symbols.values()), polynomial))


def _function(symbols: list[sympy.Symbol], polynomial: Any) -> Callable[..., Array]:
    return sympy.lambdify(symbols, polynomial, "numpy")
