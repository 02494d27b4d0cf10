"""Ingredients that compute: products of matrices, convolutions, arithmetic, reductions, norms.

An ingredient takes values from the pool and offers new ones. It gives up silently where no value fits.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from tests.programs.builder import BATCH, Builder, dims, divisors, is_batch

aten = torch.ops.aten

UNARY = (
    *(aten.silu.default, aten.tanh.default, aten.gelu.default, aten.sigmoid.default, aten.softplus.default),
    *(aten.relu.default, aten.neg.default, aten.square.default),
)
BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.maximum.default)


def linear(b: Builder) -> None:
    x = b.pick()
    b.add(b.linear(x, b.size()))


def product(b: Builder) -> None:
    """mm or addmm over all leading dims flattened, and the dims again or not."""
    x = b.pick()
    *lead, inner = dims(x)
    out = b.size()
    rows = 1
    for n in lead:
        rows *= n
    flat = b.reshape(x, rows, inner)
    weight = b.weight(inner, out) if b.flip() else b.call(aten.t.default, b.weight(out, inner))
    y = b.call(aten.addmm.default, b.weight(out), flat, weight) if b.flip() else b.call(aten.mm.default, flat, weight)
    b.add(b.reshape(y, *lead, out) if b.flip() else y)


def matmul(b: Builder) -> None:
    """With a parameter on the right, a vector, or a parameter on the left, which takes the last dim but one."""
    x = b.pick()
    *_, rows, inner = dims(x)
    kind = b.draw(("right", "vector", "left"))
    if kind == "right":
        b.add(b.call(aten.matmul.default, x, b.weight(inner, b.size())))
    elif kind == "vector" and len(dims(x)) > 2:
        b.add(b.call(aten.matmul.default, x, b.weight(inner)))
    elif kind == "left" and not is_batch(rows):
        b.add(b.call(aten.matmul.default, b.weight(b.size(), rows), x))


def pairs(b: Builder) -> None:
    """Two values of the pool times one another, as scores, all pairs in one dim, or what scores weigh."""
    x = b.pick(lambda n: len(dims(n)) == 3 and dims(n)[0] == BATCH)
    if x is None:
        return
    y = b.pick(lambda n: len(dims(n)) == 3 and dims(n)[0] == BATCH and dims(n)[1:] == dims(x)[1:])
    if b.flip():
        x, y = (b.call(aten.transpose.int, value, 1, 2) for value in (x, y))
    op = b.draw((aten.bmm.default, aten.matmul.default))
    scores = b.call(op, x, b.call(aten.transpose.int, y, 1, 2))
    kind = b.draw(("scores", "flattened", "weighing"))
    if kind == "weighing":
        scores = b.call(op, b.call(aten.softmax.int, scores, -1), y)
    b.add(b.reshape(scores, BATCH, dims(scores)[1] * dims(scores)[2]) if kind == "flattened" else scores)


def conv1d(b: Builder) -> None:
    """Full, grouped or depthwise, over positions or, transposed, over channels."""
    x = b.pick(lambda n: len(dims(n)) == 3 and not is_batch(dims(n)[1]) and not is_batch(dims(n)[2]))
    if x is None:
        return
    if b.flip():
        x = b.call(aten.transpose.int, x, 1, 2)
    channels = dims(x)[1]
    groups = b.draw((1, channels, *divisors(channels)))
    out = groups * b.draw((1, 1, 2, 3))
    weight, bias = b.weight(out, channels // groups, 3), b.maybe_weight(out)
    if b.flip():
        b.add(b.call(aten.conv1d.padding, x, weight, bias, [1], "same", [1], groups))
    else:
        b.add(b.call(aten.conv1d.default, x, weight, bias, [1], [1], [1], groups))


def conv2d(b: Builder) -> None:
    x = b.pick(lambda n: len(dims(n)) == 4 and not any(map(is_batch, dims(n)[1:])))
    if x is None:
        return
    channels = dims(x)[1]
    groups = b.draw((1, channels, *divisors(channels)))
    weight = b.weight(groups * b.draw((1, 2)), channels // groups, 3, 3)
    bias, ones = b.maybe_weight(dims(weight)[0]), [1, 1]
    if b.flip():
        y = b.call(aten.conv2d.padding, x, weight, bias, ones, "same", ones, groups)
    else:
        y = b.call(aten.conv2d.default, x, weight, bias, ones, ones, ones, groups)
    b.add(y)
    if min(dims(y)[2:]) > 1:
        pools = (aten.avg_pool2d.default, aten.max_pool2d.default, aten.adaptive_avg_pool2d.default)
        b.add(b.call(b.draw(pools), y, [2, 2]))


def unary(b: Builder) -> None:
    x = b.call(b.draw(UNARY), b.pick())
    if b.draw((True, False, False)):
        x = b.call(aten.mul.Tensor, x, 0.7)
    b.add(x)


def selection(b: Builder) -> None:
    x = b.pick()
    b.add(b.call(aten.where.self, b.call(aten.gt.Scalar, x, 0.1), x, b.call(aten.tanh.default, x)))


def passing(b: Builder) -> None:
    """Ops that change nothing in eval mode and float64."""
    x = b.pick()
    x = b.call(aten.dropout.default, x, 0.5, False) if b.flip() else b.call(aten.to.dtype, x, torch.float64)
    b.add(x)


def binary(b: Builder) -> None:
    """With another value of the same shape (a residual), or with one that broadcasts."""
    x = b.pick()
    y = b.pick(lambda n: dims(n) == dims(x) and n is not x) or b.pick(lambda n: _broadcasts(n, x))
    b.add(b.call(b.draw(BINARY), *((x, y) if b.flip() else (y, x))))


def _broadcasts(node: fx.Node, onto: fx.Node) -> bool:
    small, large = dims(node), dims(onto)
    return len(small) <= len(large) and all(m in (1, n) for m, n in zip(reversed(small), reversed(large), strict=False))


def residual(b: Builder) -> None:
    """x + W x', where x' is any value that can be projected to the size of x."""
    x = b.pick()
    y = b.pick(lambda n: dims(n)[:-1] == dims(x)[:-1])
    b.add(b.call(aten.add.Tensor, x, b.linear(y, dims(x)[-1])))


def scaled(b: Builder) -> None:
    """Times or plus a parameter that has some of the dims."""
    x = b.pick()
    shape = [n if b.flip() and not is_batch(n) else 1 for n in dims(x)]
    while len(shape) > 1 and shape[0] == 1 and b.flip():
        shape.pop(0)
    b.add(b.call(b.draw((aten.mul.Tensor, aten.add.Tensor)), x, b.weight(*shape)))


def gated(b: Builder) -> None:
    """silu(gate) * value, from two projections or from the halves of one."""
    x, size = b.pick(), b.size()
    if b.flip():
        gate, value = b.linear(x, size), b.linear(x, size)
    else:
        both = b.linear(x, 2 * size)
        halves = b.call(aten.split_with_sizes.default, both, [size, size], -1)
        gate, value = item(b, halves, 0), item(b, halves, 1)
    b.add(b.call(aten.mul.Tensor, b.call(aten.silu.default, gate), value))


def item(b: Builder, values: fx.Node, i: int) -> fx.Node:
    return b.call(operator.getitem, values, i)


def softmax(b: Builder) -> None:
    x = b.pick()
    dim = b.draw(range(-len(dims(x)), len(dims(x))))
    b.add(b.call(b.draw((aten.softmax.int, aten.log_softmax.int)), x, dim))


def reduction(b: Builder) -> None:
    """Over one dim or two, which stay as size 1 and are subtracted, or go."""
    x = b.pick(lambda n: len(dims(n)) > 2)
    if x is None:
        return
    rank = len(dims(x))
    along = sorted({b.draw(range(1, rank)), b.draw(range(1, rank))} if b.flip() else {b.draw(range(1, rank))})
    op = b.draw((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default))
    keepdim = b.flip() or rank - len(along) < 2
    y = b.call(op, x, [d - rank if b.flip() else d for d in along], keepdim)
    b.add(b.call(aten.sub.Tensor, x, y) if keepdim and b.flip() else y)


def layer_norm(b: Builder) -> None:
    """layer_norm or rms_norm over the last dim or the last two."""
    x = b.pick(lambda n: not is_batch(dims(n)[-1]))
    if x is None:
        return
    count = 2 if len(dims(x)) > 2 and not is_batch(dims(x)[-2]) and b.draw((True, False, False)) else 1
    shape = dims(x)[-count:]
    weight = b.maybe_weight(*shape)
    if b.flip():
        b.add(b.call(aten.layer_norm.default, x, list(shape), weight, b.maybe_weight(*shape), 1e-3))
    else:
        b.add(b.call(aten.rms_norm.default, x, list(shape), weight, 1e-3))


def channel_norm(b: Builder) -> None:
    """group_norm or batch_norm in eval mode: channels are dim 1."""
    x = b.pick(lambda n: len(dims(n)) > 2 and not is_batch(dims(n)[1]))
    if x is None:
        return
    channels = dims(x)[1]
    weight, bias = b.maybe_weight(channels), b.maybe_weight(channels)
    if b.flip():
        groups = b.draw((1, channels, *divisors(channels)))
        b.add(b.call(aten.group_norm.default, x, groups, weight, bias, 1e-3))
    else:
        mean, var = b.weight(channels), b.parameter(0.5 + torch.rand(channels, generator=b.noise, dtype=torch.float64))
        b.add(b.call(aten.batch_norm.default, x, weight, bias, mean, var, False, 0.1, 1e-3, False))


INGREDIENTS = (
    *(linear, linear, product, matmul, pairs, conv1d, conv2d, unary, selection, passing, binary, residual, scaled),
    *(gated, softmax, reduction, layer_norm, channel_norm),
)
