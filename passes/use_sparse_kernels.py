"""Multiply by sparse kernels where they are faster, and say where they are not.

    linear(x, W, b)   ->   csr_linear(x, W in compressed rows, b)         CPU, enough zeros in any places
                      ->   sparse24_linear(x, W two of every four, b)     CUDA, zeros by 2:4

The clock of this machine decides, at the batch and the length that are asked for. A matrix at whose shape the dense
kernel is faster keeps it, and so do all of them where the whole model would not gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F

from fxcompress import timing
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.kernel_choice import Candidate, Shape, candidates
from fxcompress.lowered import FORMATS, target
from fxcompress.pipeline import Kind, Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.record import Row
from fxcompress.rewrite import rewrite
from fxcompress.statistics import Statistics
from fxcompress.verify import probe

Phase = Literal["both", "prefill", "decode"]
RUNS = 15  # of a single product, whose time is soon taken
WHOLE = "the whole model"


@dataclass(frozen=True, kw_only=True)
class UseSparseKernels(Pass):
    """Substitute sparse ops for dense ones in the program that runs, where they win; files hold weights as before.

    batch, length: prompts at a time and their tokens. Timed are batch × length tokens, prefill, and batch × 1, decode.
    decides: where a sparse op has to win: at "prefill", at "decode", or at "both".
    margin: by how much of the dense op's time, 0.05 is 5 %.
    """

    kind: ClassVar[Kind] = "runtime"
    cuts: ClassVar[bool] = False

    batch: int = 1
    length: int = 512
    decides: Phase = "both"
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 1:
            raise CompressError(f"batch={self.batch}, length={self.length}: at least one prompt of one token is timed")
        if self.decides not in get_args(Phase):
            raise CompressError(f"decides={quoted(self.decides)} is unknown; there are {', '.join(get_args(Phase))}")
        if not 0 <= self.margin < 1:
            raise CompressError(f"margin={self.margin} is outside [0, 1): 0.05 asks for 5 % less time")

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        found, timed = candidates(program), dict[Shape, Mapping[str, list[float]]]()
        for candidate in found:
            if candidate.shape is not None and candidate.shape not in timed:
                timed[candidate.shape] = self._times_of(program, candidate)
        rows = [self._row(c, timed.get(c.shape) if c.shape is not None else None) for c in found]
        kernels = {row.key: row.role for row in rows if row.got}
        if not kernels:
            return Step(self.name), rows
        whole = self._whole(program, kernels)
        if whole.why:
            why = "faster alone, not in the whole model"
            rows = [replace(row, role="dense", got=0, why=why) if row.got else row for row in rows]
            kernels = {}
        return Step(self.name, kernels=kernels), [*rows, whole]

    @property
    def _tokens(self) -> dict[str, tuple[int, int]]:
        return {"prefill": (self.batch, self.length), "decode": (self.batch, 1)}

    def _times_of(self, program: Program, candidate: Candidate) -> dict[str, list[float]]:
        """Seconds by the dense op and by the sparse one, at each phase."""
        shape, value = candidate.shape, program.read(candidate.name)
        assert shape is not None
        matrix, op = shape.matrix(value), target(shape.op)
        held, bias = FORMATS[shape.op].pack(matrix), torch.zeros_like(matrix[:, 0]) if shape.bias else None
        times = {}
        for phase, sizes in self._tokens.items():
            x = torch.randn(*sizes, shape.columns).to(value)
            sparse, dense = timing.compare(
                partial(op, x, *held, bias), partial(F.linear, x, matrix, bias), program.device, RUNS
            )
            times[phase] = [dense, sparse]
        return times

    def _row(self, candidate: Candidate, times: Mapping[str, list[float]] | None) -> Row:
        weights, zeros = candidate.weights, candidate.zeros
        if candidate.shape is None or times is None:
            return Row(candidate.name, "dense", weights, float(zeros), 0, why=candidate.why)
        slower = self._why_slower(times, self.margin)
        why = "; ".join(filter(None, (slower, candidate.why)))
        role, got = ("dense", 0) if slower else (candidate.shape.op, zeros)
        return Row(candidate.name, role, weights, float(zeros), got, why=why, times=times)

    def _whole(self, program: Program, kernels: Mapping[str, str]) -> Row:
        """The program with its sparse ops beside the one without: what is fast alone may not be among others."""
        after, times = program.clone(), {}
        rewrite(after, Step(self.name, kernels=kernels))
        for phase, sizes in self._tokens.items():
            inputs = probe(program, *sizes)
            try:
                sparse, dense = timing.compare(
                    partial(after.run, *inputs), partial(program.run, *inputs), program.device
                )
            except (RuntimeError, IndexError) as error:
                said = str(error).partition("\n")[0]
                raise CompressError(f"the model does not run on {sizes[0]} × {sizes[1]} tokens: {said}") from error
            times[phase] = [dense, sparse]
        return Row(WHOLE, "program", len(kernels), 0.0, 0, why=self._why_slower(times, 0.0), times=times)

    def _why_slower(self, times: Mapping[str, list[float]], margin: float) -> str:
        """Where sparse has to win and does not, empty where it does."""
        said: dict[str, list[str]] = {}
        for phase in [phase for phase in times if self.decides in (phase, "both")]:
            dense, sparse = times[phase]
            if sparse > dense:
                said.setdefault("dense is faster", []).append(phase)
            elif sparse > (1 - margin) * dense:
                said.setdefault(f"sparse is faster by less than {100 * margin:g} %", []).append(phase)
        return ", ".join(f"{what} at {' and '.join(phases)}" for what, phases in said.items())
