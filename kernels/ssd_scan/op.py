"""``fxcompress::ssd_scan``: the Mamba-2 scan as one node."""

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.ssd_scan import reference
from fxcompress.rule import einop


def _fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


ssd_scan = define(reference.ssd_scan, _fake)

einop(
    torch.ops.fxcompress.ssd_scan.default,
    "b l (g r) p, b l (g r), (g r), b l g n, b l g n, (g r), (g r) -> b l (g r) p",
    roles={"g": "ssm_group", "r": "ssm_head", "p": "ssm_channel", "n": "ssm_state"},
    pins={"l": "positions follow one another"},
    # the recurrence: decay, add and read the state; chunks change the order of this work, not what is asked for
    flops=lambda s: 6 * s["b"] * s["l"] * s["g"] * s["r"] * s["p"] * s["n"],
    cache=lambda s: (0, s["g"] * s["r"] * s["p"] * s["n"]),
)
