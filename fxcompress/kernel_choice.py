"""Which sparse op could multiply by a matrix of a program, on the device where it is, and why none can.

Whether it is faster is not said here: only a clock knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxcompress.kernels.sparse24_linear.semi_structured import why_not
from fxcompress.lowered import CALLS, why_dense
from fxcompress.program import Program
from fxcompress.projections import Projection, projections
from fxcompress.rule import bind
from fxcompress.weights.pattern import NM

TWO_OF_FOUR = NM(keep=2, of=4)
LEAST = 0.4  # of the weights are zero: with fewer, no kernel here has a chance


@dataclass(frozen=True)
class Shape:
    """All that the time of a multiplication depends on: matrices of the same are timed once."""

    op: str
    outputs: int
    columns: int
    zeros: float  # the part of the weights, to a hundredth
    pattern: str
    dtype: torch.dtype
    transposed: bool  # stored as (columns, outputs)
    bias: bool

    def matrix(self, value: Tensor) -> Tensor:
        """The value of a parameter as (outputs, columns)."""
        return value.T if self.transposed else value


@dataclass(frozen=True)
class Candidate:
    """A matrix with its zeros, and the shape to time with a sparse op; without one, ``why`` there is none.

    Beside a shape ``why`` is what else there is to say about the op.
    """

    name: str
    weights: int
    zeros: int
    shape: Shape | None
    why: str


def candidates(program: Program) -> list[Candidate]:
    """All matrices of a program, in the order of their first use."""
    return [_candidate(program, p) for p in projections(program)]


def _candidate(program: Program, p: Projection) -> Candidate:
    weights, why = program.state[p.name].numel(), why_dense(program, p)
    if program.is_meta:
        return Candidate(p.name, weights, 0, None, why or "weights on meta have no values, nothing was timed")
    value = program.read(p.name)
    zeros = int((value == 0).sum())
    if why:
        return Candidate(p.name, weights, zeros, None, why)
    _, outputs, columns = p.matrices(value).shape
    pattern = program.sparse.get(p.name, "")
    if program.device.type == "cuda" and columns % 4 == 0 and not TWO_OF_FOUR.missing(p.matrices(value) == 0):
        pattern = "2:4"
    bias = bind(p.calls[0]).get(CALLS[p.calls[0].target][2]) is not None
    shape = Shape("", outputs, columns, round(zeros / weights, 2), pattern, value.dtype, p.dim == -2, bias)
    op, why = sparse_op(shape, program.device.type)
    return Candidate(p.name, weights, zeros, replace(shape, op=op) if op else None, why)


def sparse_op(shape: Shape, device: str) -> tuple[str, str]:
    """The sparse op for matrices of a shape on a kind of device, empty where there is none; and why, or a remark."""
    if shape.zeros < LEAST:
        return "", f"{100 * shape.zeros:.0f} % of its weights are zero, too few for a sparse kernel"
    if device == "cpu":
        remarks = ["2:4 has kernels on CUDA alone"] if shape.pattern == "2:4" else []
        if shape.dtype not in (torch.float32, torch.float64):
            kind = str(shape.dtype).removeprefix("torch.")
            remarks.append(f"the CPU has no sparse kernel for {kind}: computed in float32")
        return "csr_linear", "; ".join(remarks)
    if device != "cuda":
        return "", f"there are no sparse kernels for {device}"
    if shape.pattern != "2:4":
        return "", "CUDA has kernels for 2:4 alone, and its zeros are not"
    why = why_not((shape.outputs, shape.columns), shape.dtype)
    return ("", why) if why else ("sparse24_linear", "")
