"""``fxcompress::sparse24_linear``: a linear layer whose matrix is 2:4, as one node.

On CUDA the matrix is in the layout of the library that multiplies by it; in the reference's layout it runs anywhere.
"""

import math

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.sparse24_linear import semi_structured
from fxcompress.rule import einop


def _fake(x: Tensor, packed: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    torch._check(packed.shape[0] == meta.shape[0], lambda: f"{packed.shape[0]} rows, places of {meta.shape[0]}")
    return x.new_empty(*x.shape[:-1], packed.shape[0])


sparse24_linear = define(semi_structured.sparse24_linear, _fake, cuda=semi_structured.cuda)

einop(
    torch.ops.fxcompress.sparse24_linear.default,
    "... i, o v, o g, o -> ... o",
    pins={
        "i": "groups of four columns of a 2:4 matrix are held together",
        "o": "rows of a 2:4 matrix lie as its kernel reads them",
        "v": "values of a 2:4 matrix",
        "g": "places in a 2:4 matrix",
    },
    # zeros count, as they do in a dense matrix with as many: costs are told by shapes
    flops=lambda s: 2 * math.prod(size for letter, size in s.items() if letter not in "vg"),
)
