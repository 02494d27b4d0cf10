"""Helpers on ``torch.fx`` graphs: attributes by qualified name, walks over nodes, arguments and values made anew."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import py_sym_types
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

SAME_VALUES = {torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default, torch.ops.aten.reshape.default}


def get_attr(module: torch.nn.Module, name: str) -> Any:
    """The attribute at a dotted name."""
    return operator.attrgetter(name)(module)


def set_tensor(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer at a dotted name, as the kind of tensor it is."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    if leaf in module._parameters or leaf in module._buffers:
        delattr(module, leaf)
    if isinstance(value, torch.nn.Parameter):
        module.register_parameter(leaf, value)
    else:
        module.register_buffer(leaf, value)


def drop_tensor(module: torch.nn.Module, name: str) -> None:
    """Remove the parameter or buffer at a dotted name."""
    path, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(path), leaf)


def calls(graph: fx.Graph) -> list[fx.Node]:
    """All calls of functions, as a list: the graph may be edited on the way."""
    return [node for node in graph.nodes if node.op == "call_function"]


def states(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that read parameters and buffers."""
    return [node for node in graph.nodes if node.op == "get_attr"]


def same_value(node: fx.Node) -> fx.Node:
    """What a node is but a cast or another shape of."""
    return same_value(node.args[0]) if node.target in SAME_VALUES else node  # type: ignore[arg-type]


def drop_dead_code(graph: fx.Graph) -> None:
    """Erase what nothing reads. Dropout counts as an effect elsewhere: it draws numbers; here it goes too."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that the node was traced in; it names and selects, it never means anything."""
    stack = node.meta.get("nn_module_stack")
    return list(stack.values())[-1][0] if stack else ""


def module_paths(node: fx.Node) -> list[str]:
    """The paths of all modules around the node, outermost first."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]


def replace_arguments(graph: fx.Graph, function: Callable[[Any], Any]) -> None:
    """Map every constant argument of every call; one whose arguments stay as they are counts as not edited."""
    for node in calls(graph):
        before = node.args, node.kwargs
        after = fx.node.map_aggregate(before, lambda a: a if isinstance(a, fx.Node) else function(a))
        if after != before:
            node.args, node.kwargs = after


def map_inputs(graph: fx.Graph, function: Callable[[Tensor], Tensor]) -> None:
    """Map the fake values of the inputs; ``refresh`` carries the change through the graph."""
    for node in graph.find_nodes(op="placeholder"):
        with node.meta["val"].fake_mode:
            node.meta = {**node.meta, "val": function(node.meta["val"])}


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that may be a list of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@dataclass(frozen=True)
class Valued:
    """A node's fake value and the call that it is the value of."""

    target: Any
    args: Any
    kwargs: Any
    value: Any

    @classmethod
    def of(cls, node: fx.Node) -> Valued:
        return cls(node.target, node.args, node.kwargs, node.meta.get("val"))

    def still(self, node: fx.Node) -> bool:
        """Are they the very objects? An edit of a node gives it others."""
        parts = (node.target, node.args, node.kwargs, node.meta.get("val"))
        return all(a is b for a, b in zip((self.target, self.args, self.kwargs, self.value), parts, strict=True))


def valued(graph: fx.Graph) -> dict[fx.Node, Valued]:
    """All nodes, each with the call that its fake value is of: to be taken when the values are as they should be."""
    return {node: Valued.of(node) for node in graph.nodes}


def refresh(module: fx.GraphModule, known: Mapping[fx.Node, Valued] = MappingProxyType({})) -> None:
    """Compute every node's fake value anew, with the symbols of the inputs as they are.

    A call that is as ``known`` has it keeps its value unless that of an input has become another.
    """
    placeholders = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    mode: Any = next(value.fake_mode for value in placeholders if isinstance(value, FakeTensor))
    env: ShapeEnv = mode.shape_env
    with env.ignore_fresh_unbacked_symbols():
        _Refresh(module, mode, known).propagate_dont_convert_inputs(*placeholders)


class _Refresh(FakeTensorProp):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, known: Mapping[fx.Node, Valued]) -> None:
        super().__init__(module, mode)
        self.known, self.changed = known, set[fx.Node]()

    def run_node(self, node: fx.Node) -> Any:
        known = self.known.get(node)
        if node.op == "call_function" and known and known.still(node) and self.changed.isdisjoint(node.all_input_nodes):
            return known.value
        result = super().run_node(node)
        if known is None or _described(known.value) != _described(node.meta.get("val")):
            self.changed.add(node)
        return result


def _described(value: Any) -> Any:
    """All that the value of a call depends on: sizes, strides, type and device. Sizes are not compared, which would ask
    for guards, but their expressions."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, *map(_described, (*value.shape, *value.stride()))
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return value.node.expr if isinstance(value, py_sym_types) else value


def shapes_for(module: fx.GraphModule, *inputs: Tensor) -> Any:
    """Run the graph on fake tensors of the given inputs' shapes and return its fake outputs."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs]
        return fx.Interpreter(module).run(*fakes)
