"""Programs over partial tensors: every element is there or absent, and an op computes with what is there.

    sum over i of x[i] w[o, i]     over the i that are there on either side
    mean, norms                    divide by how many are there
    maximum, softmax, topk         see the elements that are there
    movement                       of an absent element is an absent element

Which elements of the parameters are absent is all that goes in. Absence then follows the data from op to op, element by
element, by what each op means (``meanings.py``); no axis, group, rule or shape of the rewrite is known here. A cut is
right if every value of the cut program consists of the elements that are there, and its outputs lack none.

What this cannot see: absence that has no source in a parameter. A dim made by ``expand`` or by a constant is there in
full until it meets a value that is not; so intermediate values are compared where their numbers of elements agree, and
outputs always.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tests.programs.meanings import MEANINGS, Partial, pointwise, whole


def run_partially(graph: fx.Graph, there: Mapping[str, Tensor]) -> Iterator[tuple[fx.Node, Any]]:
    """Each node with its partial value, from the values of the whole program in ``meta`` and what is there of some
    parameters. A node that these do not reach gives None: it is whole, and as it was."""
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.op == "get_attr" and node.target in there:
            env[node] = _zeroed(node.meta["val"], there[node.target])
        elif node.op == "call_function" and any(n in env for n in node.all_input_nodes) and _has_tensors(node):
            env[node] = _call(node, env)
        yield node, env.get(node)


def _has_tensors(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], Tensor | list | tuple)


def _call(node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: _Box(env[n] if n in env else whole(n.meta["val"]))
    )
    args, kwargs = _map(args, lambda box: box.value), _map(kwargs, lambda box: box.value)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target in MEANINGS:
        return _settled(MEANINGS[node.target](node.target, *args, **kwargs))
    if torch.Tag.pointwise in node.target.tags:
        return _settled(pointwise(node.target, *args, **kwargs))
    raise NotImplementedError(f"{node.target} has no meaning for partial tensors")


class _Box:
    """Keeps a partial value in one piece while arguments are mapped."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _map(args: Any, function: Callable) -> Any:
    if isinstance(args, _Box):
        return function(args)
    if isinstance(args, dict):
        return {k: _map(v, function) for k, v in args.items()}
    if isinstance(args, list | tuple):
        return [_map(a, function) for a in args]
    return args


def _settled(result: Any) -> Any:
    """Zero where absent, whatever the op made of it."""
    return [_zeroed(*r) for r in result] if isinstance(result, list) else _zeroed(*result)


def _zeroed(value: Tensor, there: Tensor) -> Partial:
    there = there.expand(value.shape)
    return torch.where(there > 0, value, torch.zeros((), dtype=value.dtype)), there
