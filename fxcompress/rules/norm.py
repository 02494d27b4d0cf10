"""Normalisations: they average over a dim, over the indices that are kept, as any stock checkpoint would."""

from __future__ import annotations

import torch

from fxcompress.axis import Axis, Dims, size
from fxcompress.rule import AVERAGE, Call, Sizing, rule

aten = torch.ops.aten


def _resize_normalized_shape(s: Sizing) -> dict:
    return {"normalized_shape": s.sizes(s.args["normalized_shape"], s.out[-len(s.args["normalized_shape"]) :])}


@rule(aten.layer_norm.default, aten.rms_norm.default, resize=_resize_normalized_shape)
def layer_norm(call: Call) -> Dims:
    x = call.dims("input")
    count = len(call.arg("normalized_shape"))
    for name in ("weight", "bias"):
        if call.args.get(name) is not None:
            for a, b in zip(x[-count:], call.dims(name), strict=True):
                call.tie(a, b)
    for i in range(count):
        call.reduce("input", len(x) - 1 - i, AVERAGE)
    return x


@rule(aten.group_norm.default)
def group_norm(call: Call) -> Dims:
    """Channels are (group, channel in the group); averages run within a group and over space."""
    x = call.dims("input")
    groups = call.arg("num_groups")
    split = (Axis(groups), Axis(size(x[1]) // groups))  # type: ignore[operator]
    call.tie(x[1], split)
    call.pin(split[:1], "group_norm counts its groups")
    for name in ("weight", "bias"):
        if call.arg(name) is not None:
            call.tie(x[1], call.dims(name)[0])
    for dim in (split[1:], *x[2:]):
        call.pin(dim, "group_norm averages within groups of its channels and over space")
    return x


@rule(aten.batch_norm.default)
def batch_norm(call: Call) -> Dims:
    """In eval mode a channel's statistics are constants: channels do not meet."""
    x = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.arg(name) is not None:
            call.tie(x[1], call.dims(name)[0])
    return x
