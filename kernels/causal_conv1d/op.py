"""``fxcompress::causal_conv1d``: the depthwise convolution and its activation as one node."""

from importlib.util import find_spec

import torch
from torch import Tensor

from fxcompress.kernels._register import define, widest
from fxcompress.kernels.activations import activation_named
from fxcompress.kernels.causal_conv1d import reference
from fxcompress.rule import einop

FUSED = ("", "silu", "swish")  # activations that the Triton kernel applies before it stores


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    if activation:
        activation_named(activation)
    return x.new_empty(x.shape)


def _cuda(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # the kernel accumulates in float32, so float64 stays with the reference
    if find_spec("triton") is None or activation not in FUSED or widest(x, weight, bias) == torch.float64:
        return reference.causal_conv1d(x, weight, bias, activation)
    from fxcompress.kernels.causal_conv1d import triton

    with torch.cuda.device_of(x):
        return triton.causal_conv1d(x, weight, bias, activation)


causal_conv1d = define(reference.causal_conv1d, _fake, cuda=_cuda)

einop(
    torch.ops.fxcompress.causal_conv1d.default,
    "b c l, c w, c -> b c l",
    pins={"w": "kernel positions", "l": "positions follow one another"},
    flops=lambda s: 2 * s["b"] * s["c"] * s["l"] * s["w"],
    cache=lambda s: (0, s["c"] * (s["w"] - 1)),
)
