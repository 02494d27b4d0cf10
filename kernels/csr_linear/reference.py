"""A matrix in compressed sparse rows: its values that are not zero, row after row, and the column of each."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.kernels._register import widen


def csr_linear(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose matrix is in compressed sparse rows.

        y[..., o] = bias[o] + sum_n values[n] x[..., col[n]]    with n from crow[o] to crow[o + 1] - 1

    x (..., i), crow (o + 1) and col (n) int32, values (n), bias (o) -> y (..., o), in the dtype of x. Gradients
    are those of x, values and bias: a weight that is not held stays zero.

    Saad, Iterative Methods for Sparse Linear Systems, 2nd edition, section 3.4.
    """
    dtype, columns = x.dtype, x.shape[-1]
    x, values, bias = widen(x, values, bias)
    return F.linear(x, to_dense(crow, col, values, columns), bias).to(dtype)


def to_dense(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """The matrix itself, (o, columns)."""
    rows = torch.arange(len(crow) - 1, device=crow.device).repeat_interleave(crow.diff(), output_size=len(col))
    return values.new_zeros(len(crow) - 1, columns).index_put((rows, col.long()), values)


def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (o, i) as crow, col and values. Indices take 32 bits: twice as many fit into a cache line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        compressed = weight.detach().to_sparse_csr()
    return compressed.crow_indices().int(), compressed.col_indices().int(), compressed.values().clone()
