"""2:4 on CUDA, by PyTorch's semi-structured tensors: cuSPARSELt where PyTorch was built with it, else CUTLASS.

Their layouts are their own. That of CUTLASS has places in int16, that of cuSPARSELt has them among the values: then
``meta`` is empty. In PyTorch float32 means another pattern there, 1:2, so only 16-bit types are taken.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from fxcompress.errors import CompressError
from fxcompress.kernels._register import widen
from fxcompress.kernels.sparse24_linear import reference

DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # the sizes of a matrix are multiples of these, for either library


def why_not(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Why a matrix has no kernel here, empty where it has one."""
    if dtype not in DTYPES:
        return f"2:4 kernels take float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if shape[0] % ROWS or shape[1] % COLUMNS:
        return f"2:4 kernels take multiples of {ROWS} by {COLUMNS}, not {shape[0]} by {shape[1]}"
    return ""


def is_native(meta: Tensor) -> bool:
    """Is a matrix in the layout of one of the two libraries?"""
    return meta.dtype == torch.int16


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (o, i) as packed and meta: on CUDA as the library at hand has it, elsewhere as the reference does."""
    if not weight.is_cuda:
        return reference.pack(weight)
    library: Any = SparseSemiStructuredTensorCUTLASS
    if torch.backends.cusparselt.is_available():
        library = SparseSemiStructuredTensorCUSPARSELT
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        made, rows = library.from_dense(weight.detach().contiguous()), len(weight)
    meta = weight.new_empty(rows, 0, dtype=torch.int16) if made.meta is None else made.meta
    return made.packed.view(rows, -1), meta.view(rows, -1)


def to_dense(packed: Tensor, meta: Tensor, columns: int) -> Tensor:
    """The matrix itself. Raises CompressError for the layout of cuSPARSELt where there is no CUDA."""
    if not is_native(meta):
        return reference.to_dense(packed, meta)
    if meta.numel():
        return sparse_semi_structured_to_dense_cutlass(packed, meta)
    if not packed.is_cuda:
        raise CompressError(
            "a 2:4 matrix is in the layout of cuSPARSELt, which is read on CUDA alone: move the model back to CUDA"
        )
    return torch._cslt_sparse_mm(packed, torch.eye(columns, dtype=packed.dtype, device=packed.device))


def sparse24_linear(x: Tensor, packed: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """See ``reference.sparse24_linear``, for every layout and wherever the tensors are."""
    wide, weight, bias = widen(x, to_dense(packed, meta, x.shape[-1]), bias)
    return F.linear(wide, weight, bias).to(x.dtype)


def cuda(x: Tensor, packed: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """The same on CUDA, by a kernel where the layout has one."""
    if not is_native(meta) or x.dtype != packed.dtype:
        return sparse24_linear(x, packed, meta, bias)
    library: Any = SparseSemiStructuredTensorCUTLASS if meta.numel() else SparseSemiStructuredTensorCUSPARSELT
    weight = library((packed.shape[0], x.shape[-1]), packed, meta if meta.numel() else None, None, None, None)
    return F.linear(x, weight, bias).contiguous()
