"""Look-ups: a dim that is addressed by data follows what the data points into, or keeps all of its indices."""

from __future__ import annotations

import torch

from fxcompress.axis import Dims, size
from fxcompress.rule import Call, Sizing, einop, rule

aten = torch.ops.aten


def _resize_padding(s: Sizing) -> dict[str, int]:
    """The row that takes no gradient is counted among those that stay; when it went, no row is."""
    at = s.args["padding_idx"]
    if at < 0:
        return {}
    kept = s.kept(s.dims("weight")[0])
    return {"padding_idx": kept.index(at) if at in kept else -1}


einop(aten.embedding.default, "v d, ... -> ... d", addresses={"indices": "v"}, resize=_resize_padding)


@rule(aten.index.Tensor)
def index(call: Call) -> Dims:
    dims, indices = call.dims("self"), call.arg("indices")
    addressed = [i for i, tensor in enumerate(indices) if tensor is not None]
    if len(addressed) == 1 and call.node.all_input_nodes[-1].meta["val"].dtype != torch.bool:
        at = addressed[0]
        call.address(indices[at], dims[at])
        return (*dims[:at], *call.dims(indices[at]), *dims[at + 1 :])
    return _pin_all(call)


@rule(aten.index_select.default)
def index_select(call: Call) -> Dims:
    dims, along = call.dims("self"), call.arg("dim")
    call.address("index", dims[along])
    return (*dims[:along], *call.dims("index"), *dims[along + 1 :])


@rule(aten.gather.default)
def gather(call: Call) -> Dims:
    _address_along(call)
    return call.dims("index")


@rule(aten.scatter.value, aten.scatter.src, aten.scatter_add.default)
def scatter(call: Call) -> Dims:
    """The output is ``self`` with new values at the addressed positions of one dim."""
    _address_along(call)
    if "src" in call.args:
        for x, y in zip(call.dims("index"), call.dims("src"), strict=True):
            _tie_whole(call, x, y)
    return call.dims("self")


def _address_along(call: Call) -> None:
    """The index tensor goes along ``self``, and its values are positions on one dim of it."""
    dims, at = call.dims("self"), call.dims("index")
    along = call.arg("dim") % len(dims)
    call.address("index", dims[along])
    for i, (x, y) in enumerate(zip(dims, at, strict=True)):
        if i != along:
            _tie_whole(call, x, y)


def _tie_whole(call: Call, x: tuple, y: tuple) -> None:
    """An index tensor may be shorter than what it goes along; then the first positions are meant."""
    if size(x) == size(y):
        call.tie(x, y)
    else:
        call.pin(x, "its first indices are taken by position")
        call.pin(y, "its first indices are taken by position")


def _pin_all(call: Call) -> Dims:
    out = call.fresh()
    for dim in (*(d for node in call.operands() for d in call.dims(node)), *out):
        call.pin(dim, "it is addressed by data")
    return out
