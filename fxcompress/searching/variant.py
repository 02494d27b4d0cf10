"""A program as a step would leave it, for trying out: what a rewrite gives, without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.detours import Detours
from fxcompress.plan import Step
from fxcompress.program import Origin, Program


class Variant:
    """Called as the program is. Raises CompressError for a step that cannot be carried out."""

    def __init__(self, program: Program, step: Step) -> None:
        self.program = program
        self._flat = next(n for n in program.graph.nodes if n.op == "output").args[0]
        self._ends = [value for value in self._flat if isinstance(value, fx.Node)]
        self._runs = Detours(program, [step], self._ends)

    @property
    def device(self) -> torch.device:
        return self.program.device

    @property
    def origin(self) -> Origin:
        return self.program.origin

    def __call__(self, **batch: Tensor) -> Any:
        ((_, found),) = self._runs.around(batch)
        values: dict[Any, Any] = dict(zip(self._ends, found, strict=True))
        return pytree.tree_unflatten([values.get(value, value) for value in self._flat], self.program.out_spec)
