"""The form in which a captured graph is analysed: pure calls, no bookkeeping.

Dropped: assertions on sizes and metadata, casts to the dtype a tensor already has, copies of layout (``contiguous``,
``alias``, ``detach``), slices of everything. ``view`` becomes ``reshape``, which asks nothing of the layout; an even
split becomes one with sizes; a conversion becomes a cast. In-place ops become functional (``fxcompress.functional``).
Regions under ``set_grad_enabled`` are inlined. A scale that attention would derive from a size is written out.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxcompress import graph
from fxcompress.functional import make_functional
from fxcompress.rule import bind

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}
_COPIES = {
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
}
_OTHER_NAMES = {aten.concatenate.default: aten.cat.default, aten.concat.default: aten.cat.default}
_RESHAPES = {aten.view.default, aten._unsafe_view.default}
_EVEN_SPLITS = {aten.chunk.default, aten.split.Tensor, aten.tensor_split.sections}
_CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}


def canonicalize(module: fx.GraphModule) -> None:
    """Bring a captured module's graph into canonical form, in place."""
    _inline_grad_regions(module)
    make_functional(module.graph)  # while copies are still there: x.clone().add_(1) leaves x alone
    for node in graph.calls(module.graph):
        if node.target in _ASSERTIONS:
            module.graph.erase_node(node)
        elif node.target in _COPIES or _is_noop_cast(node) or _is_full_slice(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target in _CASTS:  # a program runs on one device: what is left is the cast to a dtype
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.meta["val"].dtype), {}
        elif node.target is aten.slice_scatter.default and _covers(node):
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
        elif node.target in _OTHER_NAMES:
            node.target = _OTHER_NAMES[node.target]
        elif node.target in _RESHAPES:
            node.target = aten.reshape.default
        elif node.target is aten.scaled_dot_product_attention.default and node.kwargs.get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": node.args[0].meta["val"].shape[-1] ** -0.5}
        elif node.target in _EVEN_SPLITS and all(isinstance(n, int) for n in _split_sizes(node)):
            dim = node.args[2] if len(node.args) > 2 else 0
            node.target, node.args = aten.split_with_sizes.default, (node.args[0], _split_sizes(node), dim)
    graph.drop_dead_code(module.graph)
    module.graph.lint()
    module.recompile()


def _is_noop_cast(node: fx.Node) -> bool:
    """A cast to the dtype and device that the tensor has; ``copy=True`` makes no difference to a pure graph."""
    if node.target not in _CASTS:
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]
    return before.dtype == after.dtype and before.device == after.device


def _is_full_slice(node: fx.Node) -> bool:
    return node.target is aten.slice.Tensor and _covers(node)


def _covers(node: fx.Node) -> bool:
    """Does a slice take everything?"""
    args = bind(node)
    whole = args["end"] is None or (isinstance(args["end"], int) and args["end"] >= 2**62)
    return args["start"] in (0, None) and whole and args["step"] == 1


def _split_sizes(node: fx.Node) -> list[Any]:
    dim = node.args[2] if len(node.args) > 2 else 0
    return [piece.shape[dim] for piece in node.meta["val"]]


def _inline_grad_regions(module: fx.GraphModule) -> None:
    """Put the bodies of set_grad_enabled regions into the graph itself."""
    for node in graph.calls(module.graph):
        if not str(node.target).startswith("wrap_with_"):
            continue
        body_node = next(a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr")
        operands = list(node.args[node.args.index(body_node) + 1 :])
        body: fx.GraphModule = graph.get_attr(module, body_node.target)
        inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
        known: dict[fx.Node, Any] = dict(zip(inputs, operands, strict=True))
        with module.graph.inserting_before(node):
            outputs = module.graph.graph_copy(body.graph, known)
        stack = node.meta.get("nn_module_stack")
        for inner in known.values():
            if isinstance(inner, fx.Node) and stack and not inner.meta.get("nn_module_stack"):
                inner.meta["nn_module_stack"] = stack
        _replace_outputs(node, outputs)
        module.graph.erase_node(node)
        if not body_node.users:
            module.graph.erase_node(body_node)


def _replace_outputs(node: fx.Node, outputs: Any) -> None:
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(outputs[user.args[1]])
            user.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(outputs)
