"""Tensors made in the graph: constants of a given shape may be cut, enumerations may not."""

from __future__ import annotations

import torch

from fxcompress.axis import Dims
from fxcompress.rule import Call, rule

aten = torch.ops.aten


@rule(
    *(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default),
    resize=lambda s: {"size": s.sizes(s.args["size"], s.out)},
)
def constant(call: Call) -> Dims:
    return call.fresh()


@rule(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default)
def like(call: Call) -> Dims:
    call.addressing.add(call.args["self"])  # its values are not read
    return call.dims("self")


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(call: Call) -> Dims:
    out = call.fresh()
    call.pin(out[0], "it enumerates positions")
    return out


@rule(aten.scalar_tensor.default)
def scalar(call: Call) -> Dims:
    return ()
