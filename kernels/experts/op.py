"""``fxcompress::experts``: all experts of a layer as one node, behind a router that stays outside."""

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.activations import activation_named
from fxcompress.kernels.experts import reference
from fxcompress.rule import einop


def _fake(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gated: bool,
    activation: str,
) -> Tensor:
    activation_named(activation)
    return x.new_empty(x.shape[0], down.shape[1])


experts = define(reference.experts, _fake)

# m is 2 where the experts are gated: the rows of up are the gates of all neurons, then their values
einop(
    torch.ops.fxcompress.experts.default,
    "t h, t j, t j, e (m f) h, e o f, e (m f), e o -> t o",
    roles={"e": "expert", "f": "expert_neuron"},
    sizes={"m": lambda call: 2 if call.arg("gated") else 1},
    addresses={"index": "e"},
    pins={
        "j": "how many experts a token takes is the router's choice",
        "m": "a gated neuron needs its gate and its value",
    },
    flops=lambda s: 2 * s["t"] * s["j"] * s["f"] * (s["m"] * s["h"] + s["o"]),
)
