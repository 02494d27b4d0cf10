"""``fxcompress::csr_linear``: a linear layer whose matrix is in compressed sparse rows, as one node."""

import math

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.csr_linear import mkl, reference
from fxcompress.rule import einop


def _fake(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    torch._check(col.shape == values.shape, lambda: f"{values.shape[0]} values and {col.shape[0]} columns of them")
    return x.new_empty(*x.shape[:-1], crow.shape[0] - 1)


csr_linear = define(reference.csr_linear, _fake, cpu=mkl.csr_linear)

# u is 1: each row begins where the one before it ends, and the last one's end stands by itself
einop(
    torch.ops.fxcompress.csr_linear.default,
    "... i, (o + u), n, n, o -> ... o",
    sizes={"u": lambda call: 1},
    pins={
        "i": "the columns of a sparse matrix are addressed by its indices",
        "o": "the rows of a sparse matrix follow one another in its values",
        "n": "values of a sparse matrix",
    },
    # zeros count, as they do in a dense matrix with as many: costs are told by shapes
    flops=lambda s: 2 * math.prod(size for letter, size in s.items() if letter not in "un"),
)
