"""Ingredients that are layers: attention, Mamba, experts, embeddings; each from projections of one value.

Letters: n batch, t length, k key heads, r query heads of a key head, d and e channels of a head, g groups, p channels,
s state.
"""

from __future__ import annotations

import torch
from torch import fx

from tests.programs.algebra import item
from tests.programs.builder import BATCH, Builder, dims, is_batch

aten, ours = torch.ops.aten, torch.ops.fxcompress


def _sequence(b: Builder) -> fx.Node | None:
    """A value (n t c), made so from (n, t.., c) where need be."""
    x = b.pick(lambda n: len(dims(n)) in (3, 4) and dims(n)[0] == BATCH and not any(map(is_batch, dims(n)[1:])))
    if x is not None and len(dims(x)) == 4:
        n, t, u, c = dims(x)
        x = b.reshape(x, n, t, u * c) if b.flip() else b.reshape(x, n, t * u, c)
    return x


def _parts(b: Builder, x: fx.Node, *sizes: int) -> list[fx.Node]:
    """One projection split, or one projection for each part."""
    if b.flip():
        return [b.linear(x, size) for size in sizes]
    parts = b.call(aten.split_with_sizes.default, b.linear(x, sum(sizes)), list(sizes), -1)
    return [item(b, parts, i) for i in range(len(sizes))]


def attention(b: Builder) -> None:
    """Grouped queries through our op, through PyTorch's, or with keys and values repeated and scores written out."""
    x = _sequence(b)
    if x is None:
        return
    n, t, _ = dims(x)
    k, r, d = b.draw((1, 2, 3)), b.draw((1, 2, 3)), b.draw((2, 4))
    e = b.draw((d, 3))
    q, keys, values = _parts(b, x, k * r * d, k * d, k * e)
    q, keys, values = (
        b.call(aten.transpose.int, b.reshape(y, n, t, h, c), 1, 2)
        for y, h, c in ((q, k * r, d), (keys, k, d), (values, k, e))
    )
    if b.flip():
        weight = b.weight(d)
        q, keys = (b.call(aten.rms_norm.default, y, [d], weight, 1e-3) for y in (q, keys))
    kind = b.draw(("ours", "gqa", "repeated", "written out"))
    if kind == "ours":
        y = b.call(ours.attention.default, q, keys, values, None, d**-0.5, b.flip(), 0, b.draw((0.0, 5.0)))
    elif kind == "gqa":
        y = _sdpa(b, q, keys, values, d, enable_gqa=True)
    else:
        keys, values = (_repeat_heads(b, y, r) for y in (keys, values))
        y = _sdpa(b, q, keys, values, d) if kind == "repeated" else _written_out(b, q, keys, values)
    y = b.reshape(b.call(aten.transpose.int, y, 1, 2), n, t, k * r * e)
    b.add(b.linear(y, dims(x)[-1]) if b.flip() else y)


def _sdpa(b: Builder, q: fx.Node, k: fx.Node, v: fx.Node, d: int, **options: bool) -> fx.Node:
    causal = b.flip()
    return b.call(aten.scaled_dot_product_attention.default, q, k, v, None, 0.0, causal, scale=d**-0.5, **options)


def _written_out(b: Builder, q: fx.Node, k: fx.Node, v: fx.Node) -> fx.Node:
    scores = b.call(aten.matmul.default, q, b.call(aten.transpose.int, k, -2, -1))
    return b.call(aten.matmul.default, b.call(aten.softmax.int, scores, -1), v)


def _repeat_heads(b: Builder, x: fx.Node, times: int) -> fx.Node:
    """Heads (k) as (k r), in the three ways that models write it; or as (r k)."""
    n, k, t, d = dims(x)
    kind = b.draw(("expand", "repeat_interleave", "repeat"))
    if kind == "repeat_interleave":
        return b.call(aten.repeat_interleave.self_int, x, times, 1)
    if kind == "repeat":
        return b.call(aten.repeat.default, x, [1, times, 1, 1])
    y = b.call(aten.expand.default, b.call(aten.unsqueeze.default, x, 2), [-1, k, times, t, d])
    return b.reshape(y, n, k * times, t, d)


def _convolved(b: Builder, x: fx.Node) -> fx.Node:
    """(n t c) through a depthwise causal convolution, to (n t c)."""
    channels = dims(x)[-1]
    y = b.call(aten.transpose.int, x, 1, 2)
    act = b.draw(("silu", ""))
    y = b.call(ours.causal_conv1d.default, y, b.weight(channels, 3), b.maybe_weight(channels), act)
    return b.call(aten.transpose.int, y, 1, 2)


def _decay(b: Builder, *shape: int) -> fx.Node:
    return b.call(aten.neg.default, b.call(aten.exp.default, b.weight(*shape)))


def mamba2(b: Builder) -> None:
    """z, x, B, C and dt from one projection; the convolution runs over x, B and C together."""
    x = _sequence(b)
    if x is None:
        return
    n, t, _ = dims(x)
    g, r, p, s = b.draw((1, 2)), b.draw((1, 2, 3)), b.draw((2, 3)), b.draw((2, 3))
    inner, state = g * r * p, g * s
    z, xbc, dt = _parts(b, x, inner, inner + 2 * state, g * r)
    parts = b.call(aten.split_with_sizes.default, _convolved(b, xbc), [inner, state, state], -1)
    xs = b.reshape(item(b, parts, 0), n, t, g * r, p)
    bs, cs = (b.reshape(item(b, parts, i), n, t, g, s) for i in (1, 2))
    skip, bias = b.maybe_weight(g * r), b.maybe_weight(g * r)
    y = b.call(ours.ssd_scan.default, xs, dt, _decay(b, g * r), bs, cs, skip, bias, 4, True, 0.0, 100.0)
    y = b.reshape(y, n, t, inner)
    y = b.call(aten.mul.Tensor, y, b.call(aten.silu.default, z))
    if b.flip():
        y = b.call(aten.rms_norm.default, y, [inner], b.weight(inner), 1e-3)
    elif b.flip():  # within each group
        y = b.call(aten.rms_norm.default, b.reshape(y, n, t, g, r * p), [r * p], None, 1e-3)
        y = b.reshape(y, n, t, inner)
    b.add(b.linear(y, dims(x)[-1]) if b.flip() else y)


def delta_rule(b: Builder) -> None:
    """Queries, keys and values from one projection, decays and betas from another."""
    x = _sequence(b)
    if x is None:
        return
    n, t, _ = dims(x)
    g, r, p, s = b.draw((1, 2)), b.draw((1, 2, 3)), b.draw((2, 3)), b.draw((2, 3))
    q, k, v = _parts(b, x, g * s, g * s, g * r * p)
    decay, beta = _parts(b, x, g * r, g * r)
    q, k = (b.reshape(y, n, t, g, s) for y in (q, k))
    decay = b.call(aten.neg.default, b.call(aten.exp.default, decay))
    beta = b.call(aten.sigmoid.default, beta)
    y = b.call(ours.gated_delta.default, q, k, b.reshape(v, n, t, g * r, p), decay, beta, 4)
    y = b.reshape(y, n, t, g * r * p)
    b.add(b.linear(y, dims(x)[-1]) if b.flip() else y)


def mamba1(b: Builder) -> None:
    x = _sequence(b)
    if x is None:
        return
    channels, rank, s = b.draw((4, 6)), b.draw((2, 3)), b.draw((2, 3))
    xs, z = _parts(b, x, channels, channels)
    xs = _convolved(b, xs)
    low, bs, cs = _parts(b, xs, rank, s, s)
    xs, dt, z, bs, cs = (b.call(aten.transpose.int, y, 1, 2) for y in (xs, b.linear(low, channels, False), z, bs, cs))
    decay, skip, bias = _decay(b, channels, s), b.maybe_weight(channels), b.maybe_weight(channels)
    y = b.call(ours.selective_scan.default, xs, dt, decay, bs, cs, skip, z if b.flip() else None, bias, True)
    y = b.call(aten.transpose.int, y, 1, 2)
    b.add(b.linear(y, dims(x)[-1]) if b.flip() else y)


def experts(b: Builder) -> None:
    """A router that chooses two experts for every token and weighs them anew."""
    x = _sequence(b)
    if x is None:
        return
    n, t, h = dims(x)
    count, f, gated = b.draw((3, 4)), b.draw((2, 3)), b.flip()
    tokens = b.reshape(x, n * t, h)
    scores = b.call(aten.softmax.int, b.linear(tokens, count, True), -1)
    top = b.call(aten.topk.default, scores, 2, -1)
    weights, index = item(b, top, 0), item(b, top, 1)
    if b.flip():
        weights = b.call(aten.div.Tensor, weights, b.call(aten.sum.dim_IntList, weights, [-1], True))
    rows = 2 * f if gated else f
    biases = (b.weight(count, rows), b.weight(count, h)) if b.flip() else (None, None)
    up, down = b.weight(count, rows, h), b.weight(count, h, f)
    y = b.call(ours.experts.default, tokens, index, weights, up, down, *biases, gated, "silu")
    b.add(b.call(aten.add.Tensor, y, tokens) if b.flip() else b.reshape(y, n, t, h))


def embedding(b: Builder) -> None:
    """Of the tokens, where the program has them; else of positions, added to a value."""
    tokens = [node for node in b.inputs if not node.meta["val"].is_floating_point()]
    if tokens and b.flip():
        b.add(b.call(aten.embedding.default, b.weight(12, b.size()), tokens[0]))
        return
    x = b.pick(lambda n: len(dims(n)) > 2 and not any(map(is_batch, dims(n)[-2:])))
    if x is not None:
        *_, t, c = dims(x)
        positions = b.call(aten.arange.default, t)
        b.add(b.call(aten.add.Tensor, x, b.call(aten.embedding.default, b.weight(max(t, 4), c), positions)))


INGREDIENTS = (attention, mamba2, delta_rule, mamba1, experts, embedding)
