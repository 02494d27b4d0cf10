"""Reductions, each with what a removed index takes part as: zero in a sum, -inf in a maximum, nothing in a mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxcompress.axis import Dims
from fxcompress.rule import AVERAGE, Call, rule

aten = torch.ops.aten
NEG_INF = float("-inf")


def _along(call: Call) -> list[int]:
    rank, dim = len(call.dims("self")), call.arg("dim")
    if dim is None or (isinstance(dim, Iterable) and not list(dim)):
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(call: Call, neutral: float | str) -> Dims:
    along = _along(call)
    for i in along:
        call.reduce("self", i, neutral)
    dims = call.dims("self")
    if call.args.get("keepdim"):
        return tuple(() if i in along else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in along)


@rule(aten.mean.dim)
def mean(call: Call) -> Dims:
    return _reduced(call, AVERAGE)


@rule(aten.sum.dim_IntList)
def sum_(call: Call) -> Dims:
    return _reduced(call, 0.0)


@rule(aten.amax.default)
def amax(call: Call) -> Dims:
    return _reduced(call, NEG_INF)


@rule(aten.softmax.int, aten.log_softmax.int)
def softmax(call: Call) -> Dims:
    call.reduce("self", call.arg("dim"), NEG_INF)
    return call.dims("self")


@rule(aten.cumsum.default)
def cumsum(call: Call) -> Dims:
    dims = call.dims("self")
    along = dims[call.arg("dim")]
    call.pin(along, "its values are accumulated in order")
    call.mix(along)
    return dims


@rule(aten.topk.default)
def topk(call: Call) -> list[Dims]:
    """The highest along a dim, and where on it they stand: a removed index is never among them."""
    dims, along, count = call.dims("self"), call.arg("dim"), call.arg("k")
    along %= len(dims)
    call.reduce("self", along, NEG_INF if call.arg("largest") else -NEG_INF)
    call.need(dims[along], count, f"the {count} best of them are taken")
    new = call.fresh(tuple(call.node.meta["val"][0].shape))[along]
    call.pin(new, "its indices are ranks")
    call.points = [None, dims[along]]
    out = (*dims[:along], new, *dims[along + 1 :])
    return [out, out]
