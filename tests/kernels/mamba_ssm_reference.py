"""Compare our scans and convolution with the reference functions that mamba-ssm and causal-conv1d publish.

    python mamba_ssm_reference.py FOLDER

FOLDER holds both packages, built without CUDA. Prints, as JSON, the relative error of the output and of every gradient
for each case. Stands alone in a process: transformers would run its models on mamba-ssm's kernels if it saw them.
"""

import json
import sys
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress import kernels

INF = float("inf")


def relative_errors(ours: Callable, theirs: Callable, **inputs: Tensor) -> dict[str, float]:
    for x in inputs.values():
        x.requires_grad_()
    y, expected = ours(**inputs), theirs(**inputs)
    projection = torch.randn_like(y)
    gradients = torch.autograd.grad(y, list(inputs.values()), projection)
    expected_gradients = torch.autograd.grad(expected, list(inputs.values()), projection)
    pairs = zip(("y", *inputs), (y, *gradients), (expected, *expected_gradients), strict=True)
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in pairs}


def ssd_inputs(length: int, groups: int) -> dict[str, Tensor]:
    A = -torch.rand(4) - 0.1
    shapes = {"x": (2, length, 4, 3), "dt": (2, length, 4), "B": (2, length, groups, 5), "C": (2, length, groups, 5)}
    return {"A": A, "D": torch.randn(4), "dt_bias": torch.randn(4)} | {k: torch.randn(s) for k, s in shapes.items()}


def ssd_scan(length: int, groups: int) -> dict[str, float]:
    """Mamba-2's scan, as the fused kernel's own test computes it: in whole chunks, so padded at the end."""
    from mamba_ssm.ops.triton.ssd_combined import ssd_chunk_scan_combined_ref

    def ours(x, dt, A, B, C, D, dt_bias):
        return kernels.ssd_scan(x, dt, A, B, C, D, dt_bias, 16, True, 0.0, INF)

    def theirs(x, dt, A, B, C, D, dt_bias):
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, -length % 16)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, -length % 16))
        return ssd_chunk_scan_combined_ref(x, dt, A, B, C, 16, D=D, dt_bias=dt_bias, dt_softplus=True)[:, :length]

    return relative_errors(ours, theirs, **ssd_inputs(length, groups))


def ssd_listing() -> dict[str, float]:
    """The listing of the paper, which takes discretised inputs and a B and C for every head."""
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    inputs = ssd_inputs(48, groups=4)
    inputs = {name: inputs[name].abs() if name == "dt" else inputs[name] for name in ("x", "dt", "A", "B", "C")}

    def ours(x, dt, A, B, C):
        return kernels.ssd_scan(x, dt, A, B, C, None, None, 16, False, 0.0, INF)

    def theirs(x, dt, A, B, C):
        return ssd_minimal_discrete(x * dt[..., None], A * dt, B, C, 16)[0]

    return relative_errors(ours, theirs, **inputs)


def selective_scan() -> dict[str, float]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    b, d, l, n = 2, 3, 40, 4
    shapes = {"x": (b, d, l), "dt": (b, d, l), "z": (b, d, l), "B": (b, n, l), "C": (b, n, l), "D": (d,)}
    inputs = {name: torch.randn(shape) for name, shape in (shapes | {"dt_bias": (d,)}).items()}

    def ours(x, dt, A, B, C, D, z, dt_bias):
        return kernels.selective_scan(x, dt, A, B, C, D, z, dt_bias, True)

    def theirs(x, dt, A, B, C, D, z, dt_bias):
        return selective_scan_ref(x, dt, A, B, C, D, z, dt_bias, delta_softplus=True)

    return relative_errors(ours, theirs, A=-torch.rand(d, n) - 0.1, **inputs)


def causal_conv1d(activation: str) -> dict[str, float]:
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref

    def ours(x, weight, bias):
        return kernels.causal_conv1d(x, weight, bias, activation)

    def theirs(x, weight, bias):
        return causal_conv1d_ref(x, weight, bias, activation=activation or None)

    return relative_errors(ours, theirs, x=torch.randn(2, 5, 40), weight=torch.randn(5, 4), bias=torch.randn(5))


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    sys.modules |= {name: ModuleType(name) for name in ("selective_scan_cuda", "causal_conv1d_cuda")}  # not built
    torch.manual_seed(0)
    errors = {
        "ssd_scan, whole chunks": ssd_scan(48, groups=1),
        "ssd_scan, a rest and groups": ssd_scan(41, groups=2),
        "ssd_scan, the paper's listing": ssd_listing(),
        "selective_scan": selective_scan(),
        "causal_conv1d": causal_conv1d(""),
        "causal_conv1d, silu": causal_conv1d("silu"),
    }
    print(json.dumps(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
