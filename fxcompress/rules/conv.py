"""Convolutions and pooling over space: channels are axes, positions are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fxcompress.axis import Axis, Dims, size
from fxcompress.rule import Call, Sizing, rule

aten = torch.ops.aten


def _resize_groups(s: Sizing) -> dict:
    return {"groups": s.size(s.dims("input")[1]) // s.size(s.dims("weight")[1])}


def _flops(sizes: Mapping[str, Any]) -> Any:
    return 2 * math.prod(sizes.values())


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, resize=_resize_groups, flops=_flops)
@rule(aten.conv1d.padding, aten.conv2d.padding, resize=_resize_groups, flops=_flops)
def conv(call: Call) -> Dims:
    """x (n, g i, ...), weight (g o, i, ...), out (n, g o, ...) for g groups."""
    x, weight, groups = call.dims("input"), call.dims("weight"), call.arg("groups")
    if groups == 1:
        call.tie(x[1], weight[1])
        call.reduce("input", 1)
    else:
        group = (Axis(groups),)
        call.tie(x[1], (*group, *weight[1]))
        call.tie(weight[0], (*group, Axis(size(weight[0]) // groups)))  # type: ignore[operator]
        if weight[1]:
            call.pin(weight[1], "it is an input channel within a group of a grouped convolution")
    if call.arg("bias") is not None:
        call.tie(weight[0], call.dims("bias")[0])
    space = call.fresh()[2:]
    for dim in (*x[2:], *weight[2:], *space):
        call.pin(dim, "it is a position in space")
    call.letters = {
        "n": x[0],
        **{f"w{i}": dim for i, dim in enumerate(weight)},
        **{f"s{i}": s for i, s in enumerate(space)},
    }
    return (x[0], weight[0], *space)


@rule(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)
@rule(aten.adaptive_avg_pool1d.default, aten.max_pool1d.default, aten.avg_pool1d.default)
def pool(call: Call) -> Dims:
    x = call.dims(call.operands()[0])
    kept = 2 if "2d" in str(call.node.target) else 1
    space = call.fresh()[-kept:]
    for dim in (*x[-kept:], *space):
        call.pin(dim, "it is a position in space")
    return (*x[:-kept], *space)
