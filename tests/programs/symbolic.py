"""A program whose batch has no number: the form in which a capture is, which random programs take for a test."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fxcompress import graph
from fxcompress.program import Program
from tests.programs.builder import Trial


def with_symbolic_batch(trial: Trial) -> Program | None:
    """The program on fake tensors, None where it says what the batch is after all."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    for node in trial.graph.find_nodes(op="placeholder"):
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (node.meta["val"].dim() - 1)]
        context: StatelessSymbolicContext = StatelessSymbolicContext(dynamic_sizes=sizes)
        node.meta = {"val": mode.from_tensor(node.meta["val"], symbolic_context=context)}
    fields = {f: getattr(trial, f) for f in ("module", "inputs", "out_spec", "origin", "names")}
    program = Program(**fields)
    program.module.recompile()
    graph.refresh(program.module)
    shapes = [node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder")]
    return program if all(isinstance(shape[0], torch.SymInt) for shape in shapes) and program.symbols() else None
