"""Contractions: linear, matrix products, PyTorch's own attention."""

from __future__ import annotations

import torch

from fxcompress.rule import einop

aten = torch.ops.aten


def _flops(sizes):
    """Two operations for each combination of indices of a contraction of two operands."""
    total = 2
    for size in sizes.values():
        total = total * size
    return total


einop(aten.linear.default, "... i, o i, o -> ... o", flops=_flops)
einop(aten.mm.default, "m k, k n -> m n", flops=_flops)
einop(aten.bmm.default, "b m k, b k n -> b m n", flops=_flops)
einop(aten.addmm.default, "n, m k, k n -> m n", flops=_flops)
einop(
    aten.matmul.default,
    lambda call: (
        "k, k -> "
        if (ranks := [len(call.dims(n)) for n in ("self", "other")]) == [1, 1]
        else "k, ... k n -> ... n"
        if ranks[0] == 1
        else "... m k, k -> ... m"
        if ranks[1] == 1
        else "... m k, ... k n -> ... m n"
    ),
    flops=_flops,
)
einop(
    aten.scaled_dot_product_attention.default,
    "... t d, ... s d, ... s e, ... t s -> ... t e",
    roles={"d": "qk_channel", "e": "v_channel"},
    flops=_flops,
    context="s",
)
