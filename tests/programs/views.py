"""Ingredients that take one value in two ways and add the results: where factors and parts must agree, or do not."""

from __future__ import annotations

import torch
from torch import fx

from tests.programs.algebra import item
from tests.programs.builder import Builder, dims, divisors, is_batch

aten = torch.ops.aten


def two_ways(b: Builder) -> None:
    x = b.pick(lambda n: len(divisors(dims(n)[-1])) > 0 and not is_batch(dims(n)[-1]))
    if x is not None:
        b.add(b.call(aten.add.Tensor, b.draw(WAYS)(b, x), b.draw(WAYS)(b, x)))


def _whole(b: Builder, x: fx.Node) -> fx.Node:
    n = dims(x)[-1]
    return b.linear(x, n) if b.flip() else b.call(aten.mul.Tensor, x, b.weight(n))


def _parts(b: Builder, x: fx.Node) -> fx.Node:
    """Cut in two, each part on its own, and put together as it was or the other way round."""
    n = dims(x)[-1]
    first = b.draw((1, n - 1, *divisors(n)))
    parts = b.call(aten.split_with_sizes.default, x, [first, n - first], -1)
    low, high = item(b, parts, 0), b.call(aten.tanh.default, item(b, parts, 1))
    return b.call(aten.cat.default, [low, high] if b.flip() else [high, low], -1)


def _factors(b: Builder, x: fx.Node) -> fx.Node:
    """Seen as (outer, inner), something done along one of them, and flattened again."""
    *lead, n = dims(x)
    outer = b.draw(divisors(n))
    y = b.reshape(x, *lead, outer, n // outer)
    y = b.draw(ALONG)(b, y)
    return b.reshape(y, *lead, n)


def _scaled(b: Builder, y: fx.Node) -> fx.Node:
    outer, inner = dims(y)[-2:]
    return b.call(aten.mul.Tensor, y, b.weight(outer, 1) if b.flip() else b.weight(inner))


def _normalised(b: Builder, y: fx.Node) -> fx.Node:
    return b.call(aten.rms_norm.default, y, [dims(y)[-1]], None, 1e-3)


def _compared(b: Builder, y: fx.Node) -> fx.Node:
    return b.call(aten.softmax.int, y, b.draw((-1, -2)))


def _centred(b: Builder, y: fx.Node) -> fx.Node:
    op = b.draw((aten.mean.dim, aten.amax.default, aten.sum.dim_IntList))
    return b.call(aten.sub.Tensor, y, b.call(op, y, [b.draw((-1, -2))], True))


def _attending(b: Builder, y: fx.Node) -> fx.Node:
    """Outer indices look at one another."""
    scores = b.call(aten.matmul.default, y, b.call(aten.transpose.int, y, -2, -1))
    return b.call(aten.matmul.default, b.call(aten.tanh.default, scores), y)


def _swapped(b: Builder, y: fx.Node) -> fx.Node:
    return b.call(aten.transpose.int, y, -2, -1)


WAYS = (_whole, _parts, _factors, _factors)
ALONG = (_scaled, _normalised, _compared, _centred, _attending, _swapped)
INGREDIENTS = (two_ways,) * 6
