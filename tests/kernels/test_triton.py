"""Triton kernels: in the interpreter for what they compute, compiled for an H100 for what they use, and on a GPU.

The interpreter and the compiler exclude each other within a process, and both change Triton for all of it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxcompress.kernels import causal_conv1d
from fxcompress.kernels.causal_conv1d import reference

pytest.importorskip("triton")


def run(module: str, **environment: str) -> None:
    """Run the tests of a module beside this one in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"{module}.py"]
    result = subprocess.run(
        command, cwd=Path(__file__).parent, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_compute_their_references_in_the_interpreter():
    run("interpreted", TRITON_INTERPRET="1")


def test_kernels_compile_for_an_h100_within_its_limits():
    run("compiled", TRITON_INTERPRET="0")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 33, 65, 4), (3, 640, 1025, 3)], ids=str)
def test_causal_conv1d_on_a_gpu_is_its_reference(shape: tuple[int, int, int, int], dtype: torch.dtype):
    b, c, l, w = shape
    x = torch.randn(b, l, c, dtype=dtype, device="cuda").transpose(1, 2)
    weight, bias = torch.randn(c, w, dtype=dtype, device="cuda"), torch.randn(c, dtype=dtype, device="cuda")
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu"), reference.causal_conv1d(x, weight, bias, "silu"))


@pytest.mark.gpu
def test_causal_conv1d_on_a_gpu_has_the_gradients_of_its_reference():
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in ((2, 33, 65), (33, 4), (33,))]
    gradients = torch.autograd.grad(causal_conv1d(*inputs, "silu").square().sum(), inputs)
    expected = torch.autograd.grad(reference.causal_conv1d(*inputs, "silu").square().sum(), inputs)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.gpu
def test_float64_on_a_gpu_is_not_rounded_to_float32():
    x, weight = (torch.randn(shape, dtype=torch.float64, device="cuda") for shape in ((2, 33, 65), (33, 4)))
    y = causal_conv1d(x, weight, None, "").cpu()
    torch.testing.assert_close(y, reference.causal_conv1d(x.cpu(), weight.cpu(), None, ""), rtol=0, atol=1e-12)
