"""``fxcompress::gated_delta``: the gated delta rule as one node.

Its axes are those of a Mamba-2 scan: keys write to the state and queries read it as B and C do there.
"""

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.gated_delta import reference
from fxcompress.rule import einop


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return v.new_empty(v.shape)


gated_delta = define(reference.gated_delta, _fake)

einop(
    torch.ops.fxcompress.gated_delta.default,
    "b l g n, b l g n, b l (g r) p, b l (g r), b l (g r) -> b l (g r) p",
    roles={"g": "ssm_group", "r": "ssm_head", "p": "ssm_channel", "n": "ssm_state"},
    pins={"l": "positions follow one another"},
    # the recurrence: decay, ask the state, correct it and read it
    flops=lambda s: 7 * s["b"] * s["l"] * s["g"] * s["r"] * s["p"] * s["n"],
    cache=lambda s: (0, s["g"] * s["r"] * s["p"] * s["n"]),
)
