"""What the Triton kernels compute, in Triton's interpreter on the CPU.

Run by test_triton.py in a process of its own, with TRITON_INTERPRET=1.
"""

import ctypes
import mmap

import pytest
import torch
from torch import Tensor

from fxcompress.kernels.causal_conv1d import reference
from fxcompress.kernels.causal_conv1d.triton import BLOCK_C, BLOCK_L, causal_conv1d, launch

SHAPES = {
    "one of all": (1, 1, 1, 1),
    "shorter than the filter": (1, 3, 2, 4),
    "one block": (1, BLOCK_C, BLOCK_L, 4),
    "blocks and a rest": (2, BLOCK_C + 1, BLOCK_L + 1, 4),
    "narrow filter": (1, 5, 2 * BLOCK_L - 1, 2),
}


def sample(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    b, c, l, w = shape
    torch.manual_seed(0)
    return torch.randn(b, c, l, dtype=dtype), torch.randn(c, w, dtype=dtype), torch.randn(c, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("activation", ["", "silu"])
def test_it_computes_the_reference(shape: tuple[int, int, int, int], activation: str):
    x, weight, bias = sample(shape)
    torch.testing.assert_close(
        causal_conv1d(x, weight, bias, activation), reference.causal_conv1d(x, weight, bias, activation)
    )


def test_it_needs_no_bias():
    x, weight, _ = sample((2, 3, 5, 4))
    torch.testing.assert_close(causal_conv1d(x, weight, None, ""), reference.causal_conv1d(x, weight, None, ""))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)], ids=str)
def test_sixteen_bit_inputs_are_summed_in_float32(dtype: torch.dtype, rounding: float):
    x, weight, bias = sample((1, 2, 70, 4), dtype)
    y = causal_conv1d(x, weight, bias, "silu")
    exact = reference.causal_conv1d(x.double(), weight.double(), bias.double(), "silu")
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=1e-6)


def test_the_input_may_have_any_strides():
    x, weight, bias = sample((2, 5, 9, 4))
    y = causal_conv1d(x, weight, bias, "silu")
    torch.testing.assert_close(causal_conv1d(x.mT.contiguous().mT, weight, bias, "silu"), y)
    torch.testing.assert_close(causal_conv1d(x.repeat_interleave(2, -1)[..., ::2], weight, bias, "silu"), y)


def fenced(t: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor at the end of a buffer that is NaN before it and has a page behind it that none may touch."""
    space = (t.nbytes // mmap.PAGESIZE + 1) * mmap.PAGESIZE
    memory = mmap.mmap(-1, space + mmap.PAGESIZE)
    buffer = torch.frombuffer(memory, dtype=t.dtype, count=space // t.itemsize).fill_(torch.nan)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(buffer.data_ptr() + space), mmap.PAGESIZE, 0) == 0
    inside = buffer[-t.numel() :].view(t.shape)
    return inside.copy_(t), buffer


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_reads_and_writes_nothing_outside_its_tensors(shape: tuple[int, int, int, int]):
    x, weight, bias = (fenced(t)[0] for t in sample(shape))
    y, buffer = fenced(torch.full_like(x, torch.nan))
    launch(x, weight, bias, y, silu=True)
    assert y.isfinite().all()
    assert buffer.isfinite().sum() == y.numel()
