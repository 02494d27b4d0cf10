"""``fxcompress::selective_scan``: the Mamba-1 scan as one node."""

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.selective_scan import reference
from fxcompress.rule import einop


def _fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


selective_scan = define(reference.selective_scan, _fake)

einop(
    torch.ops.fxcompress.selective_scan.default,
    "b d l, b d l, d n, b n l, b n l, d, b d l, d -> b d l",
    roles={"d": "ssm_channel", "n": "ssm_state"},
    pins={"l": "positions follow one another"},
    flops=lambda s: 6 * s["b"] * s["d"] * s["l"] * s["n"],  # decay, add and read the state
    cache=lambda s: (0, s["d"] * s["n"]),
)
