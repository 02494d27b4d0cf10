"""``fxcompress::attention``: grouped-query attention as one node, keys and values not repeated."""

import torch
from torch import Tensor

from fxcompress.kernels._register import define
from fxcompress.kernels.attention import fused
from fxcompress.rule import einop


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    heads, shared = q.shape[1], k.shape[1]
    torch._check(heads % shared == 0, lambda: f"{heads} query heads cannot share {shared} key and value heads evenly")
    return q.new_empty(*q.shape[:3], v.shape[3])


attention = define(fused.attention, _fake)

einop(
    torch.ops.fxcompress.attention.default,
    "b (k r) t d, b k s d, b k s e, b s -> b (k r) t e",
    roles={"k": "kv_head", "r": "query_head", "d": "qk_channel", "e": "v_channel"},
    pins={"t": "queries see keys by position", "s": "queries see keys by position"},
    flops=lambda s: 2 * s["b"] * s["k"] * s["r"] * s["t"] * s["s"] * (s["d"] + s["e"]),
    cache=lambda s: (s["k"] * (s["d"] + s["e"]), 0),
    context="s",
)
