"""Contractions: linear, matrix products, PyTorch's own attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fxcompress.rule import einop

aten = torch.ops.aten


def _product(sizes: Mapping[str, Any], *letters: str) -> Any:
    return math.prod(sizes[letter] for letter in letters)


def _flops(sizes: Mapping[str, Any]) -> Any:
    """Two operations for each combination of indices of a contraction of two operands."""
    return 2 * _product(sizes, *sizes)


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
    lambda call: (
        "b (k r) t d, b k s d, b k s e, ... t s -> b (k r) t e"
        if call.arg("enable_gqa")
        else "... k t d, ... k s d, ... k s e, ... t s -> ... k t e"
        if len(call.shape) > 3
        else "... t d, ... s d, ... s e, ... t s -> ... t e"
    ),
    roles={"k": "kv_head", "r": "query_head", "d": "qk_channel", "e": "v_channel"},
    pins={"t": "queries see keys by position", "s": "queries see keys by position"},
    flops=lambda n: 2 * _product(n, "t", "s", *(x for x in n if x not in "tsde")) * (n["d"] + n["e"]),
    context="s",
)
