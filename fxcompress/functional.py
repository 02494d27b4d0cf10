"""In-place ops become functional: what was written to is a new value, and later readers read that.

    x.add_(y)                        ->  x1 = x.add(y)                              x read later: x1
    x[..., a:b].copy_(y)             ->  x1 = slice_scatter(x, y, -1, a, b)         x read later: x1

A tensor whose memory something else shares that is read later, other than through these slices, is refused.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxcompress import graph
from fxcompress.errors import CaptureError
from fxcompress.rule import bind

aten = torch.ops.aten


def make_functional(calls: fx.Graph) -> None:
    """Replace every in-place call of a graph, first to last."""
    for node in graph.calls(calls):
        if _is_inplace(node):
            _replace(node)


def _is_inplace(node: fx.Node) -> bool:
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target._schema.is_mutable
        and target._schema.name.endswith("_")
        and hasattr(aten, _functional_name(target))
    )


def _functional_name(target: torch._ops.OpOverload) -> str:
    return target._schema.name.split("::")[1].removesuffix("_")


def _replace(node: fx.Node) -> None:
    written = node.args[0]
    slices = _slices(written)
    base = slices[-1].args[0] if slices else written
    position = {n: i for i, n in enumerate(node.graph.nodes)}
    if base.op != "call_function" or _is_view(base) or _read_later(base, position, position[node]):
        where = graph.module_path(node) or "the model"
        raise CaptureError(
            f"{where} changes {written.name} in place ({node.target}), which shares its memory with another value;"
            " write it without the in-place operation"
        )
    value = result = _functional(node)
    for view in slices:
        with node.graph.inserting_after(value):
            whole = view.args[0]
            value = _call(node, aten.slice_scatter.default, (whole, value, *_bounds(view)), whole)
    if slices:  # what the call returns shares its memory with the new value
        again = value
        for view in reversed(slices):
            with node.graph.inserting_after(again):
                again = _call(node, aten.slice.Tensor, (again, *_bounds(view)), view)
        result.replace_all_uses_with(again, delete_user_cb=lambda user: position.get(user, -1) > position[node])
    for user in list(base.users):
        if position.get(user, -1) > position[node]:
            user.replace_input_with(base, value)


def _bounds(view: fx.Node) -> tuple:
    """A slice's dim, start, end and step."""
    args = bind(view)
    return tuple(args[name] for name in ("dim", "start", "end", "step"))


def _slices(written: fx.Node) -> list[fx.Node]:
    """The slices through which a tensor is written to, the innermost first."""
    found = []
    while written.target is aten.slice.Tensor:
        found.append(written)
        written = written.args[0]
    return found


def _read_later(base: fx.Node, position: dict[fx.Node, int], now: int) -> bool:
    """Is a view of the tensor that was made before now read afterwards?"""
    views = [user for user in base.users if _is_view(user) and position[user] < now]
    return any(any(position[user] > now for user in view.users) or _read_later(view, position, now) for view in views)


def _functional(node: fx.Node) -> fx.Node:
    """The call without its side effect, in its place."""
    target = node.target
    if target is aten.copy_.default:  # what is there before does not matter
        return _copied(node)
    node.target = getattr(getattr(aten, _functional_name(target)), target._overloadname)
    return node


def _copied(node: fx.Node) -> fx.Node:
    written, source = node.args[0], node.args[1]
    there, here = written.meta["val"], source.meta["val"]
    value = source
    with node.graph.inserting_before(node):
        if here.dtype != there.dtype:
            value = _call(node, aten.to.dtype, (value, there.dtype), written)
        if here.shape != there.shape:  # broadcast to the shape that is written to
            value = _call(
                node, aten.add.Tensor, (_call(node, aten.zeros_like.default, (written,), written), value), written
            )
    node.target, node.args, node.kwargs = aten.alias.default, (value,), {}
    return node


def _call(node: fx.Node, target: torch._ops.OpOverload, args: tuple, like: fx.Node) -> fx.Node:
    """A new call with the place in the model of one node and the value of another."""
    new = node.graph.call_function(target, args)
    new.meta = {**node.meta, "val": like.meta["val"]}
    return new


def _is_view(node: fx.Node) -> bool:
    """Does the output share memory with an input? Said by the op's schema; an item of a list shares the list's."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    if node.target is aten.dropout.default and not node.args[2]:  # out of training it returns what it is given
        return True
    return isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info for r in node.target._schema.returns)
