"""Ops that move indices and compute nothing: views, permutations, splits and concatenations."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch

from fxcompress.axis import Axis, Dim, Dims, Size, concat, divide, factors, size
from fxcompress.keep import is_cut
from fxcompress.rule import Call, Sizing, rule

aten = torch.ops.aten
moves = functools.partial(rule, moves=True)


def _resize_shape(name: str) -> Any:
    return lambda s: {name: s.sizes(s.args[name], s.out)}


def _resize_reshape(s: Sizing) -> dict[str, Any]:
    """A dim that mixes sizes known now and at run time is what remains: its size is an expression over both."""
    sizes = zip(s.sizes(s.args["shape"], s.out), s.out, strict=True)
    return {"shape": [-1 if _is_mixed(dim) and is_cut(dim, s.keep) else n for n, dim in sizes]}


def _is_mixed(dim: Dim) -> bool:
    known = {isinstance(axis.size, int) for axis in factors(dim)}
    return len(known) > 1


@moves(aten.reshape.default, resize=_resize_reshape)
@moves(aten.flatten.using_ints)
def reshape(call: Call) -> Dims:
    """Deal the source's factors out to the target's sizes, major to minor, splitting free axes where they divide."""
    source = [axis for dim in call.dims("self") for axis in factors(dim)]
    out: list[Dim] = []
    for target in call.shape:
        taken = _take(call, source, target)
        if taken is None:
            return _misaligned(call)
        out.append(taken)
    written = call.args.get("shape", [])
    mixed = [i for i, dim in enumerate(out) if _is_mixed(dim)]
    inferred = [i for i, n in enumerate(written) if isinstance(n, int) and n == -1 and i not in mixed]
    for i in [*inferred, *mixed][1:]:  # only one size of a view is left to be inferred
        if i in mixed:
            call.pin(out[i], "it is flattened with sizes known at run time only, beside another such dim")
    return tuple(out)


def _take(call: Call, source: list[Axis], target: Size) -> Dim | None:
    """Take leading axes off ``source`` until their product is ``target``."""
    taken: list[Axis] = []
    need = target
    while need != 1:
        source[:] = factors(source)
        if not source:
            return None
        head = source[0]
        rest = divide(need, head.size)
        if rest is not None:
            taken.append(source.pop(0))
            need = rest
        elif (inner := divide(head.size, need)) is not None and isinstance(head.size, int) and isinstance(need, int):
            split = (Axis(need), Axis(inner))
            call.tie((head,), split)
            source[0:1] = split
        else:
            return None
    return tuple(taken)


def _misaligned(call: Call) -> Dims:
    before, after = call.dims("self"), call.fresh()
    shapes = [[size(dim) for dim in before], list(call.shape)]
    for dim in (*before, *after):
        call.pin(dim, f"the view {shapes[0]} -> {shapes[1]} mixes the axis")
    return after


@moves(aten.to.dtype, aten.dropout.default)
def copy(call: Call) -> Dims:
    return call.dims(call.operands()[0])


@moves(aten.expand.default, resize=_resize_shape("size"))
def expand(call: Call) -> Dims:
    source = call.dims("self")
    source = ((),) * (len(call.shape) - len(source)) + source
    return tuple(d or new for d, new in zip(source, call.fresh(), strict=True))


@moves(aten.transpose.int)
def transpose(call: Call) -> Dims:
    dims, i, j = list(call.dims("self")), call.arg("dim0"), call.arg("dim1")
    dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


@moves(aten.permute.default)
def permute(call: Call) -> Dims:
    return tuple(call.dims("self")[i] for i in call.arg("dims"))


@moves(aten.t.default)
def t(call: Call) -> Dims:
    return call.dims("self")[::-1]


@moves(aten.unsqueeze.default)
def unsqueeze(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dims.insert(call.arg("dim") % (len(dims) + 1), ())
    return tuple(dims)


@moves(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call) -> Dims:
    dims, drop = call.dims("self"), call.arg("dim")
    dropped = {d % len(dims) for d in ([drop] if isinstance(drop, int) else drop)}
    return tuple(dim for i, dim in enumerate(dims) if i not in dropped or dim)


@moves(aten.cat.default)
def cat(call: Call) -> Dims:
    parts = [call.dims(node) for node in call.arg("tensors")]
    parts = [part for part in parts if len(part) == len(call.shape)]  # torch lets an empty 1-D tensor join in
    along = call.arg("dim") % len(parts[0])
    for part in parts[1:]:
        for i, dim in enumerate(part):
            if i != along:
                call.tie(parts[0][i], dim)
    return (*parts[0][:along], concat([part[along] for part in parts]), *parts[0][along + 1 :])


@moves(aten.stack.default)
def stack(call: Call) -> Dims:
    first, *others = (call.dims(node) for node in call.arg("tensors"))
    for other in others:
        for x, y in zip(first, other, strict=True):
            call.tie(x, y)
    along = call.arg("dim") % (len(first) + 1)
    new = call.fresh()[along]
    call.pin(new, "tensors are stacked along it")
    return (*first[:along], new, *first[along:])


def _resize_split(s: Sizing) -> dict[str, Any]:
    along = s.args["dim"] % len(s.dims("self"))
    return {"split_sizes": [s.size(part[along]) for part in s.out]}


@moves(aten.split_with_sizes.default, resize=_resize_split)
def split(call: Call) -> list[Dims]:
    dims, sizes = call.dims("self"), call.arg("split_sizes")
    along = call.arg("dim") % len(dims)
    present = [n for n in sizes if n != 0]  # what is optional may be split off at a size of nothing
    parts = iter(call.cut(dims[along], [sum(present[:i]) for i in range(1, len(present))]))
    pieces = [next(parts) if n != 0 else (Axis(0),) for n in sizes]
    return [(*dims[:along], piece, *dims[along + 1 :]) for piece in pieces]


@moves(operator.getitem)
def getitem(call: Call) -> Dims:
    return call.env[call.node.args[0]][call.node.args[1]]


@moves(aten.unbind.int)
def unbind(call: Call) -> list[Dims]:
    dims, along = call.dims("self"), call.arg("dim")
    along %= len(dims)
    call.pin(dims[along], "each index is taken out by its position")
    return [dims[:along] + dims[along + 1 :]] * len(call.node.meta["val"])


def _resize_slice(s: Sizing) -> dict[str, Any]:
    dims = s.dims("self")
    along = s.args["dim"] % len(dims)
    total = size(dims[along])
    if not isinstance(total, int) or not is_cut(dims[along], s.keep):
        return {}
    start, end = (_position(s.args[name], total, default) for name, default in (("start", 0), ("end", total)))
    if s.args["step"] != 1:  # every index of the minor factor stays
        return {"end": s.size(dims[along])}
    return {"start": s.before(dims[along], start), "end": s.before(dims[along], end)}


def _position(value: Any, total: int, default: int) -> int:
    value = default if value is None else value
    return max(0, min(value + total if value < 0 else value, total))


@moves(aten.slice.Tensor, resize=_resize_slice)
def slice_(call: Call) -> Dims:
    dims = call.dims("self")
    along = call.arg("dim") % len(dims)
    if size(dims[along]) == call.shape[along]:
        return dims
    return (*dims[:along], _sliced(call, dims[along], call.shape[along]), *dims[along + 1 :])


@rule(aten.slice_scatter.default, resize=_resize_slice)
def slice_scatter(call: Call) -> Dims:
    """``self`` with a slice of it overwritten."""
    dims, source = call.dims("self"), call.dims("src")
    along = call.arg("dim") % len(dims)
    written = size(source[along])
    part = dims[along] if size(dims[along]) == written else _sliced(call, dims[along], written)
    for x, y in zip((*dims[:along], part, *dims[along + 1 :]), source, strict=True):
        call.tie(x, y)
    return dims


def _is_comb(call: Call, total: Size) -> bool:
    """Does a slice take the same place out of every run of ``step`` indices, as x[..., 1::2] does?"""
    step = call.arg("step")
    if step == 1 or not isinstance(total, int) or total % step:
        return False
    start, end = (_position(call.arg(name), total, default) for name, default in (("start", 0), ("end", total)))
    return start < step and end > total - step + start


def _sliced(call: Call, dim: Dim, length: Size) -> Dim:
    """The part of a dim from ``start`` to ``end``, pinned where it is not a plain range."""
    bounds, total = [call.arg("start"), call.arg("end")], size(dim)
    if _is_comb(call, total):
        outer, inner = Axis(length), Axis(call.arg("step"))
        call.tie(dim, (outer, inner))
        call.pin((inner,), "a slice takes one of every few indices")
        return (outer,)
    if call.arg("step") != 1 or not isinstance(total, int) or not all(b is None or isinstance(b, int) for b in bounds):
        new: Dim = (Axis(length),) if length != 1 else ()
        for pinned in (dim, new):
            call.pin(pinned, "a slice takes indices by their position")
        return new
    start, end = _position(bounds[0], total, 0), _position(bounds[1], total, total)
    parts = call.cut(dim, [o for o in (start, end) if 0 < o < total])
    return parts[1 if start else 0]


@moves(aten.select.int)
def select(call: Call) -> Dims:
    dims = call.dims("self")
    along = call.arg("dim") % len(dims)
    call.pin(dims[along], "an index is selected by its position")
    return dims[:along] + dims[along + 1 :]


@moves(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call) -> Dims:
    """Repeats stand next to each other: the new axis is the minor one."""
    dims, along = call.dims("self"), call.arg("dim")
    along %= len(dims)
    times = Axis(call.arg("repeats"))
    call.pin((times,), "the number of repeats is written in the graph")
    return (*dims[:along], (*dims[along], times), *dims[along + 1 :])


@moves(aten.repeat.default)
def repeat(call: Call) -> Dims:
    """Whole copies follow one another: the new axis is the major one."""
    counts = call.arg("repeats")
    source = call.dims("self")
    source = ((),) * (len(counts) - len(source)) + source
    out: list[Dim] = []
    for times, dim in zip(counts, source, strict=True):
        new = (Axis(times),) if isinstance(times, int) and times != 1 else ()
        call.pin(new, "the number of repeats is written in the graph")
        out.append((*new, *dim) if isinstance(times, int) else call.fresh()[len(out)])
    return tuple(out)


@rule(aten.pad.default)
def pad(call: Call) -> Dims:
    dims, fresh, widths = list(call.dims("self")), call.fresh(), call.arg("pad")
    for i in range(len(widths) // 2):
        before, after = widths[2 * i], widths[2 * i + 1]
        if before != 0 or after != 0:
            call.pin(dims[-1 - i], "it is padded")
            call.pin(fresh[-1 - i], "it is padded")
            dims[-1 - i] = fresh[-1 - i]
    return tuple(dims)


@moves(aten.flip.default, aten.roll.default)
def reorder(call: Call) -> Dims:
    dims = call.dims("self")
    for along in call.arg("dims") or range(len(dims)):
        call.pin(dims[along], "indices change their places by position")
        call.mix(dims[along])
    return dims
