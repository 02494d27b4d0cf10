"""Products with compressed sparse rows on the CPU, by MKL through PyTorch's sparse tensors.

Measured on one core: one token is several times faster as a vector, and more tokens as the columns of one product;
``F.linear`` with such a tensor is slower than both from two tokens on.
"""

import torch
from torch import Tensor

from fxcompress.kernels._register import widen


def csr_linear(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """See ``reference.csr_linear``. MKL knows float32 and float64: narrower types are widened."""
    dtype, shape = x.dtype, (*x.shape[:-1], len(crow) - 1)
    x, values, bias = widen(x.reshape(-1, x.shape[-1]), values.contiguous(), bias)
    matrix = torch.sparse_csr_tensor(crow, col, values, (shape[-1], x.shape[-1]), check_invariants=False)
    y = (matrix @ x[0])[None] if len(x) == 1 else (matrix @ x.T).T
    return (y if bias is None else y + bias).to(dtype).reshape(shape).contiguous()
