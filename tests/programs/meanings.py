"""What each op means for partial tensors; the law is in ``partial.py``.

A partial tensor is a pair: values, zero where absent, and 1.0 where there or 0.0 where absent. A meaning takes the op
and its arguments with pairs for tensors, and returns a pair or several. Values where it is absent do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten, ours = torch.ops.aten, torch.ops.fxcompress

Partial = tuple[Tensor, Tensor]
NEG_INF = -math.inf


def whole(value: Any) -> Any:
    """A value of which nothing is absent; a size is only a size."""
    if isinstance(value, list | tuple):
        return [whole(v) for v in value]
    return (value, torch.ones(value.shape, dtype=torch.float64)) if isinstance(value, Tensor) else value


def _is_partial(a: Any) -> bool:
    return isinstance(a, tuple) and len(a) == 2 and isinstance(a[0], Tensor)


def _values(args: Any) -> Any:
    if _is_partial(args):
        return args[0]
    return [_values(a) for a in args] if isinstance(args, list) else args


def _there(args: Any) -> Any:
    if _is_partial(args):
        return args[1]
    return [_there(a) for a in args] if isinstance(args, list) else args


def _both(*there: Tensor | None) -> Tensor:
    out = torch.ones((), dtype=torch.float64)
    for t in there:
        out = out if t is None else out * t
    return out


def pointwise(op: Any, *args: Any, **kwargs: Any) -> Partial:
    value = op(*_values(list(args)), **kwargs)
    return value, _both(*(a[1] for a in args if _is_partial(a)))


def _moved(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What the op does to the elements it does to the truth values."""
    value, there = op(*_values(list(args)), **kwargs), op(*_there(list(args)), **kwargs)
    if isinstance(value, list | tuple):
        return list(zip(value, there, strict=True))
    return value, there


def _as_first(op: Any, x: Partial, *args: Any, **kwargs: Any) -> Partial:
    return op(x[0], *_values(list(args)), **kwargs), x[1]


def _contraction(bias_at: int | None, channel: int) -> Callable:
    """A product of two operands: there where any term is, and the bias if it has one."""

    def meaning(op: Any, *args: Any) -> Partial:
        values, there = _values(list(args)), _there(list(args))
        bias = None
        if bias_at is not None and len(args) > bias_at:
            bias, there[bias_at] = there[bias_at], None
            if op is aten.addmm.default:
                there[bias_at] = torch.zeros((), dtype=torch.float64)
        terms = (op(*there) > 0.5).double()
        if bias is not None and channel != -1:
            bias = bias.view(-1, *[1] * (terms.dim() - channel - 1))
        return op(*values), _both(terms, bias)

    return meaning


def _along(x: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.dim()))
    return [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _sum(op: Any, x: Partial, dim: Any = None, keepdim: bool = False) -> Partial:
    along = _along(x[0], dim)
    return x[0].sum(along, keepdim), x[1].amax(along, keepdim)


def _mean(op: Any, x: Partial, dim: Any = None, keepdim: bool = False) -> Partial:
    along = _along(x[0], dim)
    return x[0].sum(along, keepdim) / x[1].sum(along, keepdim), x[1].amax(along, keepdim)


def _without(x: Partial) -> Tensor:
    return x[0].masked_fill(x[1] == 0, NEG_INF)


def _amax(op: Any, x: Partial, dim: Any, keepdim: bool = False) -> Partial:
    along = _along(x[0], dim)
    return _without(x).amax(along, keepdim), x[1].amax(along, keepdim)


def _softmax(op: Any, x: Partial, dim: int, *_: Any) -> Partial:
    return op(_without(x), dim), x[1]


def _topk(op: Any, x: Partial, k: int, dim: int = -1) -> list[Partial]:
    values, index = op(_without(x), k, dim)
    there = x[1].gather(dim, index)
    return [(values, there), (index, there)]


def _normalised(x: Partial, along: list[int], eps: float, centre: bool) -> Tensor:
    value, there = x
    count = there.sum(along, keepdim=True)
    if centre:
        value = (value - value.sum(along, keepdim=True) / count) * there
    return value * torch.rsqrt(value.square().sum(along, keepdim=True) / count + eps)


def _affine(y: Tensor, there: Tensor, weight: Partial | None, bias: Partial | None, shape: Any = None) -> Partial:
    for part, op in ((weight, torch.mul), (bias, torch.add)):
        if part is not None:
            value, own = (t if shape is None else t.view(shape) for t in part)
            y, there = op(y, value), there * own
    return y, there


def _layer_norm(op: Any, x: Partial, shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Partial:
    along = list(range(-len(shape), 0))
    return _affine(_normalised(x, along, eps, centre=True), x[1], weight, bias)


def _rms_norm(op: Any, x: Partial, shape: Any, weight: Any = None, eps: Any = None) -> Partial:
    eps = torch.finfo(x[0].dtype).eps if eps is None else eps
    return _affine(_normalised(x, list(range(-len(shape), 0)), eps, centre=False), x[1], weight, None)


def _group_norm(op: Any, x: Partial, groups: int, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Partial:
    shape = x[0].shape
    grouped = (x[0].reshape(shape[0], groups, -1), x[1].reshape(shape[0], groups, -1))
    y = _normalised(grouped, [2], eps, centre=True).view(shape)
    return _affine(y, x[1], weight, bias, (1, -1, *[1] * (len(shape) - 2)))


def _batch_norm(op: Any, x: Partial, *args: Any) -> Partial:
    shape = (1, -1, *[1] * (x[0].dim() - 2))
    own = [a[1].view(shape) for a in args if _is_partial(a)]
    return op(x[0], *_values(list(args))), _both(x[1], *own)


def _looked_up(op: Any, x: Partial, dim: int, index: Partial) -> Partial:
    there = op(x[1], dim, index[0])
    own = index[1] if index[1].dim() > 1 else index[1].view([-1 if i == dim else 1 for i in range(there.dim())])
    return op(x[0], dim, index[0]), there * own


def _index(op: Any, x: Partial, indices: list) -> Partial:
    dim = next(i for i, a in enumerate(indices) if a is not None)
    return _looked_up(aten.index_select.default, x, dim, indices[dim])


def _embedding(op: Any, weight: Partial, index: Partial, *_: Any) -> Partial:
    return op(weight[0], index[0]), op(weight[1], index[0]) * index[1][..., None]


def _pad(op: Any, x: Partial, widths: list[int]) -> Partial:
    value = op(x[0], widths)
    padded = [x[0].dim() - 1 - i // 2 for i, n in enumerate(widths) if n]
    return value, x[1].amax(padded, keepdim=True).expand(value.shape)


def _pool(op: Any, x: Partial, size: Any) -> Partial:
    return op(x[0], size), (op(x[1], size) > 0).double()


def _made(op: Any, x: Partial, *args: Any, **kwargs: Any) -> Partial:
    return whole(op(x[0], *args, **kwargs))


def _causal_conv1d(op: Any, x: Partial, weight: Partial, bias: Partial | None, act: str) -> Partial:
    own = _both(weight[1].amin(1), None if bias is None else bias[1])
    return op(x[0], weight[0], None if bias is None else bias[0], act), x[1] * own[:, None]


def _sdpa(
    op: Any, q: Partial, k: Partial, v: Partial, mask: None, dropout: float, causal: bool, *, scale: float,
    enable_gqa: bool = False,
) -> Partial:  # fmt: skip
    return _attention(op, q, k, v, mask, scale, causal, 0, 0.0)


def _attention(
    op: Any, q: Partial, k: Partial, v: Partial, mask: Any, scale: float, causal: bool, window: int, cap: float
) -> Partial:
    """Scores written out; a query sees a key that is there for it, and one head of keys may serve many of queries."""
    times = q[0].shape[1] // k[0].shape[1]
    (k0, k1), (v0, v1) = (tuple(t.repeat_interleave(times, 1) for t in x) for x in (k, v))
    scores = scale * q[0] @ k0.mT
    seen = (q[1] @ k1.mT > 0.5).double()
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if causal:
        seen = seen.tril(seen.shape[-1] - seen.shape[-2])
    if mask is not None:
        seen = seen * mask[0][:, None, None]
    weights = scores.masked_fill(seen == 0, NEG_INF).softmax(-1).nan_to_num(0)
    return weights @ v0, (seen @ v1 > 0.5).double()


def _ssd_scan(op: Any, x: Any, dt: Any, a: Any, b: Any, c: Any, skip: Any, bias: Any, *options: Any) -> Partial:
    """A channel is there if its head's step and decay are, and any state of its group."""
    times = x[0].shape[2] // b[0].shape[2]
    state = (b[1] * c[1]).amax(-1).repeat_interleave(times, 2)
    head = _both(dt[1], a[1], state, None if skip is None else skip[1], None if bias is None else bias[1])
    return op(*_values([x, dt, a, b, c, skip, bias]), *options), x[1] * head[..., None]


def _gated_delta(op: Any, q: Any, k: Any, v: Any, decay: Any, beta: Any, chunk: int) -> Partial:
    """A channel is there if its head's decay and beta are, and any state of its group."""
    state = (q[1] * k[1]).amax(-1).repeat_interleave(v[0].shape[2] // q[0].shape[2], 2)
    head = _both(decay[1], beta[1], state)
    return op(*_values([q, k, v, decay, beta]), chunk), v[1] * head[..., None]


def _selective_scan(
    op: Any, x: Any, dt: Any, a: Any, b: Any, c: Any, skip: Any, z: Any, bias: Any, softplus: bool
) -> Partial:
    state = torch.einsum("dn,bnl->bdl", a[1], b[1] * c[1]).clamp(max=1)
    per_channel = [None if v is None else v[1][:, None] for v in (skip, bias)]
    there = _both(x[1], dt[1], state, None if z is None else z[1], *per_channel)
    return op(*_values([x, dt, a, b, c, skip, z, bias]), softplus), there


def _experts(
    op: Any, x: Any, index: Any, weight: Any, up: Any, down: Any, b_up: Any, b_down: Any, gated: bool, act: str
) -> Partial:
    """An output is there if the token is and the output's rows are: an absent neuron is zero on both sides."""
    there = x[1].amax(1, keepdim=True) * down[1].amax((0, 2))
    if b_down is not None:
        there = there * b_down[1].amax(0)
    return op(*_values([x, index, weight, up, down, b_up, b_down]), gated, act), there


_MOVEMENT = (
    *(aten.reshape.default, aten.flatten.using_ints, aten.transpose.int, aten.permute.default, aten.t.default),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.cat.default, aten.stack.default),
    *(aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int, aten.unbind.int, aten.expand.default),
    *(aten.repeat_interleave.self_int, aten.repeat.default, aten.flip.default, aten.roll.default),
)
_LIKE = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
_NEW = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
_CONVOLUTIONS = (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding)
_POOLS = (
    *(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default),
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
)

MEANINGS: dict[Any, Callable] = {
    **dict.fromkeys(_MOVEMENT, _moved),
    **dict.fromkeys((*_LIKE, aten.dropout.default, aten.to.dtype), _as_first),
    **dict.fromkeys((aten.cumsum.default, aten.cumprod.default), _as_first),
    **dict.fromkeys(_NEW, _made),
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.matmul.default), _contraction(None, -1)),
    **dict.fromkeys(_CONVOLUTIONS, _contraction(2, 1)),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys((aten.softmax.int, aten.log_softmax.int), _softmax),
    **dict.fromkeys((aten.index_select.default, aten.gather.default), _looked_up),
    aten.linear.default: _contraction(2, -1),
    aten.addmm.default: _contraction(0, -1),
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _mean,
    aten.amax.default: _amax,
    aten.topk.default: _topk,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
    aten.index.Tensor: _index,
    aten.embedding.default: _embedding,
    aten.pad.default: _pad,
    aten.scaled_dot_product_attention.default: _sdpa,
    ours.attention.default: _attention,
    ours.causal_conv1d.default: _causal_conv1d,
    ours.ssd_scan.default: _ssd_scan,
    ours.gated_delta.default: _gated_delta,
    ours.selective_scan.default: _selective_scan,
    ours.experts.default: _experts,
}  # fmt: skip
