"""Linear layers of an ordinary model that multiply by the sparse ops of a program: so ``generate`` has them too.

The layer keeps its dense weight, which modeling code may ask for its dtype or device, and does not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fxcompress import graph
from fxcompress.lowered import FORMATS, target
from fxcompress.program import Program


class SparseLinear(nn.Module):
    """In the place of ``linear``: the same, by a sparse op that holds its matrix in ``parts``."""

    def __init__(self, linear: nn.Linear, op: str, parts: list[Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.op = linear.weight, linear.bias, target(op)
        for i, part in enumerate(parts):
            self.register_buffer(f"part_{i}", part, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, *self.buffers(recurse=False), self.bias)


def put_sparse(model: Any, program: Program, names: Mapping[str, str]) -> None:
    """Replace linear layers whose matrices a program's sparse ops hold; ``names``: in the model -> in the program."""
    for name, first in names.items():
        path, _, leaf = name.rpartition(".")
        if first in program.lowered and leaf == "weight" and type(model.get_submodule(path)) is nn.Linear:
            op = program.lowered[first].op
            parts = [graph.get_attr(program.module, part) for part in FORMATS[op].names(first)]
            model.set_submodule(path, SparseLinear(model.get_submodule(path), op, parts))
