"""What the Triton kernels use on an H100, read from their binaries.

Run by test_triton.py in a process of its own.
"""

import hopper
import pytest
import torch
import triton
import triton.language as tl

from fxcompress.kernels.causal_conv1d.triton import causal_conv1d

DRIVER = hopper.install()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["channels first", "channels last", "odd sizes"])
def test_causal_conv1d_fits_on_the_chip_without_spilling(dtype: torch.dtype, layout: str):
    c, l = (257, 1001) if layout == "odd sizes" else (256, 1024)
    x = torch.empty(2, c, l, dtype=dtype)
    if layout == "channels last":
        x = torch.empty(2, l, c, dtype=dtype).transpose(1, 2)
    for bias in (None, torch.empty(c, dtype=dtype)):
        causal_conv1d(x, torch.empty(c, 4, dtype=dtype), bias, "silu")
        used = DRIVER.compiled[-1]
        assert used.kernel == "causal_conv1d_kernel"
        assert used.stack == 0
        assert used.registers <= 255
        assert used.shared <= hopper.MAX_SHARED


@triton.jit
def held_in_registers(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    tl.store(y + i, a * tl.load(x + tl.sum(a).to(tl.int32) + i))


def test_a_kernel_with_too_many_values_a_thread_is_seen_to_spill():
    held_in_registers[(1,)](torch.empty(1), torch.empty(1), N=8192, num_warps=1)
    assert DRIVER.compiled[-1].stack > 0
