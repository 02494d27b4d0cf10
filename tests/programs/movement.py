"""Ingredients that move indices: views, permutations, splits, concatenations, repeats, and what goes by position."""

from __future__ import annotations

import math

import torch

from tests.programs.algebra import item
from tests.programs.builder import BATCH, Builder, dims, divisors, is_batch

aten = torch.ops.aten


def split_dim(b: Builder) -> None:
    """One dim as two, the batch never: (b t) as (b, t) at the most."""
    x = b.pick(lambda n: any(len(divisors(d)) for d in dims(n)) and len(dims(n)) < 5)
    if x is None:
        return
    at = b.draw([i for i, d in enumerate(dims(x)) if divisors(d)])
    shape = list(dims(x))
    outer = BATCH if is_batch(shape[at]) else b.draw(divisors(shape[at]))
    b.add(b.reshape(x, *shape[:at], outer, shape[at] // outer, *shape[at + 1 :]))


def merge_dims(b: Builder) -> None:
    x = b.pick(lambda n: len(dims(n)) > 2)
    if x is None:
        return
    shape = list(dims(x))
    at = b.draw(range(len(shape) - 1))
    if b.draw((True, False, False)):
        b.add(b.call(aten.flatten.using_ints, x, at, at + 1))
    else:
        b.add(b.reshape(x, *shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))


def deal_again(b: Builder) -> None:
    """(a, b) as (c, d) with a b = c d: often across the factors."""
    x = b.pick(lambda n: len(dims(n)) > 2 and not any(map(is_batch, dims(n)[-2:])))
    if x is None:
        return
    *lead, a, c = dims(x)
    if options := divisors(a * c):
        outer = b.draw(options)
        b.add(b.reshape(x, *lead, outer, a * c // outer))


def transpose(b: Builder) -> None:
    x = b.pick()
    rank = len(dims(x))
    if b.flip():
        i, j = b.draw(range(rank)), b.draw(range(rank))
        b.add(b.call(aten.transpose.int, x, i, j - rank))
    else:
        order = list(range(rank))
        for i in range(rank - 1):
            j = b.draw(range(i, rank))
            order[i], order[j] = order[j], order[i]
        b.add(b.call(aten.permute.default, x, order))


def swap_inner(b: Builder) -> None:
    """(.., a, b) flattened as (b a): a shuffle of channels."""
    x = b.pick(lambda n: len(dims(n)) > 2 and not any(map(is_batch, dims(n)[-2:])))
    if x is None:
        return
    *lead, a, c = dims(x)
    b.add(b.reshape(b.call(aten.transpose.int, x, -2, -1), *lead, a * c))


def new_dim(b: Builder) -> None:
    x = b.pick(lambda n: len(dims(n)) < 4)
    if x is None:
        return
    at = b.draw(range(len(dims(x)) + 1))
    y = b.call(aten.unsqueeze.default, x, at)
    if b.flip():
        b.add(y)
    elif b.flip():
        b.add(b.call(aten.squeeze.dims, b.call(aten.tanh.default, y), [at]))
    else:
        b.add(b.call(aten.squeeze.dim, y, at - len(dims(y))))


def _cuttable(b: Builder, x: torch.fx.Node) -> int | None:
    """A dim that is not the batch's, the last one more often."""
    options = [i for i, n in enumerate(dims(x)) if n > 1 and not is_batch(n)]
    return b.draw((*options, options[-1])) if options else None


def split(b: Builder) -> None:
    """Two or three parts, often aligned with a factor, which go their ways or come together in another order."""
    x = b.pick()
    at = _cuttable(b, x)
    if at is None:
        return
    n = dims(x)[at]
    offsets = sorted({b.draw((*divisors(n), n - 1, n // 2 or 1)) for _ in range(b.draw((1, 1, 2)))})
    sizes = [end - start for start, end in zip([0, *offsets], [*offsets, n], strict=True)]
    parts = b.call(aten.split_with_sizes.default, x, sizes, at if b.flip() else at - len(dims(x)))
    pieces = [item(b, parts, i) for i in range(len(sizes))]
    if b.flip():
        b.add(*pieces)
    else:
        b.add(b.call(aten.cat.default, [b.call(aten.neg.default, pieces[-1]), *pieces[:-1]], at))


def slice_(b: Builder) -> None:
    x = b.pick()
    at = _cuttable(b, x)
    if at is None:
        return
    n = dims(x)[at]
    start, end = b.draw((0, None, n // 2, -(n // 2))), b.draw((n, None, n - 1, -1))
    step = 2 if b.draw((True, *[False] * 7)) else 1
    b.add(b.call(aten.slice.Tensor, x, at, start, end, step))


def rotate_half(b: Builder) -> None:
    x = b.pick(lambda n: dims(n)[-1] % 2 == 0 and not is_batch(dims(n)[-1]))
    if x is None:
        return
    half = dims(x)[-1] // 2
    first, second = b.call(aten.slice.Tensor, x, -1, 0, half), b.call(aten.slice.Tensor, x, -1, half, 2 * half)
    turned = b.call(aten.cat.default, [b.call(aten.neg.default, second), first], -1)
    b.add(b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, 0.6), turned))


def cat(b: Builder) -> None:
    x = b.pick()
    rank = len(dims(x))
    at = b.draw(range(rank))
    if is_batch(dims(x)[at]):
        return
    rest = [i for i in range(rank) if i != at]
    beside = [n for n in b.pool if len(dims(n)) == rank and all(dims(n)[i] == dims(x)[i] for i in rest)]
    others = [n for n in beside if n is not x] or [x]
    b.add(b.call(aten.cat.default, [x, b.draw(others)], at))


def stack(b: Builder) -> None:
    x = b.pick(lambda n: len(dims(n)) < 4)
    if x is None:
        return
    y = b.pick(lambda n: dims(n) == dims(x))
    b.add(b.call(aten.stack.default, [x, y], b.draw(range(1, len(dims(x)) + 1))))


def outer_product(b: Builder) -> None:
    """A value along a new dim, times a parameter that has it. The expanded value goes nowhere else: whether an index
    of the new dim is removed there could not be told from the value alone."""
    x = b.pick(lambda n: len(dims(n)) < 4)
    if x is None:
        return
    times = b.size()
    at = b.draw(range(1, len(dims(x)) + 1))
    y = b.call(aten.unsqueeze.default, x, at)
    shape = [-1] * len(dims(y))
    shape[at] = times
    y = b.call(aten.expand.default, y, shape)
    own = [times if i == at else n if i > at and not is_batch(n) else 1 for i, n in enumerate(dims(y))]
    b.add(b.call(aten.mul.Tensor, y, b.weight(*own)))


def repeats(b: Builder) -> None:
    x = b.pick()
    at = _cuttable(b, x)
    if at is None:
        return
    if b.flip():
        b.add(b.call(aten.repeat_interleave.self_int, x, 2, at))
    else:
        b.add(b.call(aten.repeat.default, x, [2 if i == at else 1 for i in range(len(dims(x)))]))


def by_position(b: Builder) -> None:
    """Ops that take, order or accumulate indices by their position: they pin, and other dims pass through."""
    x = b.pick(lambda n: any(d > 1 and not is_batch(d) for d in dims(n)))
    if x is None:
        return
    at = _cuttable(b, x)
    assert at is not None
    n = dims(x)[at]
    some = b.indices(n, b.draw((2, 3)))
    options = {
        "flip": lambda: b.call(aten.flip.default, x, [at]),
        "roll": lambda: b.call(aten.roll.default, x, [1], [at]),
        "cumsum": lambda: b.call(aten.cumsum.default, x, at),
        "select": lambda: b.call(aten.select.int, x, at, n // 2) if len(dims(x)) > 2 else x,
        "unbind": lambda: item(b, b.call(aten.unbind.int, x, at), n // 2) if len(dims(x)) > 2 else x,
        "index_select": lambda: b.call(aten.index_select.default, x, at, some),
        "index": lambda: b.call(aten.index.Tensor, x, [None] * at + [some]),
        "topk": lambda: item(b, b.call(aten.topk.default, x, 2, at), 0),
        "gather": lambda: b.call(aten.gather.default, x, at, item(b, b.call(aten.topk.default, x, 2, at), 1)),
        "pad": lambda: b.call(aten.pad.default, x, [0, 0] * (len(dims(x)) - 1 - at) + [1, 0]),
        "cumprod": lambda: b.call(aten.cumprod.default, x, at),  # has no rule
    }
    b.add(options[b.draw(sorted(options))]())


def constants(b: Builder) -> None:
    """Tensors made in the graph; whether an index is removed from them shows where they meet a value."""
    x = b.pick(lambda n: not any(map(is_batch, dims(n)[1:])))
    if x is None:
        return
    shape, like = list(dims(x)), {"dtype": torch.float64}
    made = {
        "zeros": lambda: b.call(aten.zeros.default, shape[1:], **like),
        "ones": lambda: b.call(aten.ones.default, shape[1:], **like),
        "full": lambda: b.call(aten.full.default, shape[1:], 0.3, **like),
        "new_zeros": lambda: b.call(aten.new_zeros.default, x, shape[1:]),
        "new_ones": lambda: b.call(aten.new_ones.default, x, shape[1:]),
        "new_full": lambda: b.call(aten.new_full.default, x, shape[1:], 0.3),
        "zeros_like": lambda: b.call(aten.zeros_like.default, x),
        "ones_like": lambda: b.call(aten.ones_like.default, x),
        "full_like": lambda: b.call(aten.full_like.default, x, 0.3),
        "scalar": lambda: b.call(aten.scalar_tensor.default, 0.3, **like),
        "arange": lambda: _enumeration(b, shape[-1]) if not is_batch(shape[-1]) else x,
    }
    b.add(b.call(aten.add.Tensor, x, made[b.draw(sorted(made))]()))


def _enumeration(b: Builder, n: int) -> torch.fx.Node:
    kind, like = b.draw(("end", "start", "step")), {"dtype": torch.float64}
    if kind == "end":
        return b.call(aten.arange.default, n, **like)
    if kind == "start":
        return b.call(aten.arange.start, 1, n + 1, **like)
    return b.call(aten.arange.start_step, 0, 2 * n, 2, **like)


def pool(b: Builder) -> None:
    x = b.pick(lambda n: len(dims(n)) == 3 and dims(n)[-1] > 1 and math.prod(dims(n)) % BATCH == 0)
    if x is None or is_batch(dims(x)[-1]):
        return
    op = b.draw((aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default))
    b.add(b.call(op, x, [2]))


INGREDIENTS = (
    *(split_dim, split_dim, merge_dims, merge_dims, deal_again, transpose, swap_inner, new_dim, split, split, slice_),
    *(rotate_half, cat, stack, outer_product, repeats, by_position, by_position, constants, constants, pool),
)
