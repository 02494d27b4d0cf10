"""Look-ups: a dim that is addressed by data keeps all of its indices."""

from __future__ import annotations

import torch

from fxcompress.axis import Dims
from fxcompress.rule import Call, einop, rule

aten = torch.ops.aten

einop(
    aten.embedding.default,
    "v d, ... -> ... d",
    roles={"v": "vocabulary"},
    pins={"v": "its rows are addressed by token ids or positions"},
)


@rule(aten.index.Tensor)
def index(call: Call) -> Dims:
    dims, indices = call.dims("self"), call.arg("indices")
    addressed = [i for i, tensor in enumerate(indices) if tensor is not None]
    for i in addressed:
        call.pin(dims[i], "it is addressed by data")
    if len(addressed) == 1:
        at = addressed[0]
        return (*dims[:at], *call.dims(indices[at]), *dims[at + 1 :])
    return _pin_all(call)


@rule(aten.index_select.default)
def index_select(call: Call) -> Dims:
    dims, along = call.dims("self"), call.arg("dim")
    call.pin(dims[along], "it is addressed by data")
    return (*dims[:along], *call.dims("index"), *dims[along + 1 :])


@rule(aten.gather.default)
def gather(call: Call) -> Dims:
    source, at = call.dims("self"), call.dims("index")
    along = call.arg("dim") % len(source)
    for i, (x, y) in enumerate(zip(source, at, strict=True)):
        if i == along:
            call.pin(x, "it is addressed by data")
        else:
            call.tie(x, y)
    return at


def _pin_all(call: Call) -> Dims:
    out = call.fresh()
    for dim in (*(d for node in call.operands() for d in call.dims(node)), *out):
        call.pin(dim, "it is addressed by data")
    return out
