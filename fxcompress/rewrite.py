"""Carry a decision out on a program, in place: slice every tensor once, give size arguments anew, skip modules.

Zeros are in the values: of a decision on them only their pattern is taken over. Matrices may get sparse ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import blocks, graph
from fxcompress.axes import AxisMap
from fxcompress.axis import Dims, size
from fxcompress.errors import CompressError
from fxcompress.keep import Keep, Outer, is_cut, kept_indices, kept_size, select
from fxcompress.lowered import lower
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.rule import RULES, Sizing, bind


def rewrite(program: Program, step: Step) -> None:
    """Apply a step to a program: cuts by its current axes, then removals, then kernels."""
    if step.keep:
        axes = program.get(AxisMap)
        cut(program, axes, keep_by_axis(axes, step.keep))
    for path in step.remove:
        blocks.skip(program, path)
    for name, op in step.kernels.items():
        lower(program, name, op)
    if step.keep or step.remove or step.kernels:
        program.changed()
    program.sparse |= step.sparse


def keep_by_axis(axes: AxisMap, keep: Mapping[str, Tensor]) -> Keep:
    """From group keys to axes, each checked against the group's size."""
    out = {}
    for key, index in keep.items():
        group = axes[key]
        if group.pinned and not group.border:
            raise CompressError(f"{key} cannot be cut: {group.pinned[0]}")
        if index.shape[:-1] not in ((), group.sizes[:-1]) or not 0 < index.shape[-1] <= group.size:
            raise CompressError(f"{key}: kept indices of shape {tuple(index.shape)} for a group of {group.sizes}")
        if index.min() < 0 or index.max() >= group.size:
            raise CompressError(f"{key}: kept indices reach {int(index.max())} in a group of {group.size}")
        out[group.axis] = index
    return out


def cut(program: Program, axes: AxisMap, keep: Keep) -> None:
    """Keep the named indices of each axis in every tensor and every size argument."""
    check_needs(axes, keep)
    _renumber(program, axes, keep)
    for name, dims in cut_tensors(axes, keep):
        program.set_state(name, sliced(graph.get_attr(program.module, name), dims, keep, axes.outer))
        if name in program.readers:
            program.readers[name] = partial(_read_cut, program.readers[name], dims, keep, axes.outer)
    for node, arguments in resized(axes, keep):
        node.args, node.kwargs = arguments


def cut_tensors(axes: AxisMap, keep: Keep) -> Iterator[tuple[str, Dims]]:
    """The parameters and buffers that lose indices, with their dims."""
    for name, dims in axes.state.items():
        if any(is_cut(dim, keep) for dim in dims):
            yield name, dims


def resized(axes: AxisMap, keep: Keep) -> Iterator[tuple[fx.Node, tuple[Any, Any]]]:
    """The calls that are given sizes, with their arguments as they are after a cut."""
    for node, dims in axes.dims.items():
        rule = RULES.get(node.target)
        if rule is not None and rule.resize is not None and _touches(node, axes, keep):
            sizing = Sizing(bind(node), dims, axes.dims, keep, axes.outer)
            yield node, _with_arguments(node, rule.resize(sizing))


def _read_cut(read: Callable[[], Tensor], dims: Dims, keep: Keep, outer: Outer) -> Tensor:
    return select(read(), dims, keep, outer)


def _renumber(program: Program, axes: AxisMap, keep: Keep) -> None:
    """Remember what the values of an input stood for, where what they address is cut."""
    for name, values in axes.inputs.items():
        if values.addressed and is_cut(values.addressed[0], keep):
            kept = kept_indices(values.addressed[0], keep, axes.outer)
            program.numbering[name] = program.numbering[name][kept] if name in program.numbering else kept


def check_needs(axes: AxisMap, keep: Keep) -> None:
    """Raise CompressError where an op would be left with fewer indices than it takes."""
    for node, dim, least, why in axes.needs:
        if is_cut(dim, keep) and (left := kept_size(dim, keep)) < least:
            where = graph.module_path(node) or node.name
            raise CompressError(f"{where}: {left} of {size(dim)} indices would be left where {why}")


def sliced(tensor: Tensor, dims: tuple, keep: Keep, outer: Outer) -> Tensor:
    """The kept indices of each dim of a tensor; a parameter stays a parameter."""
    value = select(tensor.detach(), dims, keep, outer)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _touches(node: fx.Node, axes: AxisMap, keep: Keep) -> bool:
    tensors = [axes.dims[node], *(axes.dims[n] for n in node.all_input_nodes if n in axes.dims)]
    return any(
        is_cut(dim, keep) for item in tensors for dims in (item if isinstance(item, list) else [item]) for dim in dims
    )


def _with_arguments(node: fx.Node, values: Mapping[str, object]) -> tuple[Any, Any]:
    """The call's arguments with some set by their names in the schema, where the call has them."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, value in values.items():
        if (position := names.index(name)) < len(args):
            args[position] = value  # type: ignore[call-overload]
        else:
            kwargs[name] = value  # type: ignore[assignment]
    return tuple(args), kwargs
