"""What the package's fused functions compute, in Triton's interpreter, is what capture puts in their place.

The package publishes no reference of a fused block with several groups, or with neurons beside the scan.

Run by test_mamba_ssm_models.py in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from fxcompress.replacements import FUNCTIONS


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    """The launchers ask for a CUDA device, and autotuning for a clock: a choice of one needs none.

    Kernels are tuned where they are defined, so the tests import the package themselves.
    """
    tuned = triton.autotune
    one = mock.patch.object(triton, "autotune", lambda configs, *args, **options: tuned(configs[:1], *args, **options))
    with one, mock.patch("torch.cuda.device", return_value=contextlib.nullcontext()):
        yield


def convolution(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
    """In place of the compiled one."""
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))


LAYOUTS = {
    "one group": {},
    "groups": {"groups": 2},
    "norm before gate, limits": {"groups": 2, "norm_before_gate": True, "dt_limit": (0.1, 0.9)},
    "neurons beside, D by channel, no norm": {"groups": 2, "beside": 8, "by_channel": True, "norm": False},
    "neurons beside, D by channel": {"groups": 2, "beside": 8, "by_channel": True},
}


def block(
    groups: int = 1, beside: int = 0, by_channel: bool = False, norm: bool = True, **options: Any
) -> tuple[tuple, dict[str, Any]]:
    """Arguments of a fused block of 4 heads of 16 channels, with a state of 16."""
    torch.manual_seed(0)
    heads, channels, state = 4, 16, 16
    inner = heads * channels
    convolved = inner + 2 * groups * state
    inputs = (
        torch.randn(2, 21, 2 * beside + inner + convolved + heads),
        torch.randn(convolved, 4),
        torch.randn(convolved),
        torch.randn(heads),
        -torch.rand(heads) - 0.1,
        torch.randn(heads, channels) if by_channel else torch.randn(heads),
        8,
    )
    norms = {"rmsnorm_weight": torch.randn(inner), "rmsnorm_eps": 1e-5} if norm else {}
    sizes = {"headdim": None if by_channel else channels, "ngroups": groups}
    return inputs, {
        "norm_before_gate": False,
        "outproj_weight": torch.randn(10, beside + inner),
    } | norms | sizes | options


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fused_block(layout, monkeypatch):
    from tests.mamba_package.package import ssd_combined

    monkeypatch.setattr(ssd_combined, "causal_conv1d_fwd_function", convolution)
    inputs, options = block(**LAYOUTS[layout])
    theirs = ssd_combined.mamba_split_conv1d_scan_combined(*inputs, **options)
    ours = FUNCTIONS["mamba_split_conv1d_scan_combined"](*inputs, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["rmsnorm_fn", "layernorm_fn"])
def test_a_gated_norm(name, before):
    from tests.mamba_package.package import layernorm_gated

    x, z, weight, bias = (torch.randn(shape) for shape in ((3, 5, 32), (3, 5, 32), (32,), (32,)))
    options = {"z": z, "eps": 1e-5, "group_size": 16, "norm_before_gate": before}
    theirs = getattr(layernorm_gated, name)(x, weight, bias, **options)
    torch.testing.assert_close(FUNCTIONS[name](x, weight, bias, **options), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("is_rms_norm", [True, False])
def test_a_norm_with_its_addition(dtype, in_fp32, first, is_rms_norm):
    from tests.mamba_package.package import layer_norm

    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((3, 5, 32), (32,), (32,)))
    residual = None if first else torch.randn(3, 5, 32, dtype=torch.float32 if in_fp32 else dtype)
    options = {"residual": residual, "prenorm": True, "residual_in_fp32": in_fp32, "is_rms_norm": is_rms_norm}
    theirs = layer_norm.layer_norm_fn(x, weight, bias, **options)
    torch.testing.assert_close(FUNCTIONS["layer_norm_fn"](x, weight, bias, **options), theirs)
