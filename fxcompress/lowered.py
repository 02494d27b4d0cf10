"""Matrices that sparse ops multiply by, in a program that runs: put in the place of dense ones, and brought back.

    linear(x, W, b)    ->    csr_linear(x, W_crow, W_col, W_values, b)    ->    linear(x, W, b)

An op holds the matrix itself in another form, no copy beside it, so that it comes back bit for bit. What leaves the
program (files, models of transformers, further passes) begins with ``restored``, and knows nothing of kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph
from fxcompress.kernels.csr_linear import reference as csr
from fxcompress.kernels.sparse24_linear import semi_structured
from fxcompress.program import Lowered, Program
from fxcompress.projections import Projection
from fxcompress.rule import bind, op_name

aten = torch.ops.aten


@dataclass(frozen=True)
class Format:
    """How an op holds a matrix (outputs, columns): in which tensors, how they are made, and what they stand for."""

    parts: tuple[str, ...]
    pack: Callable[[Tensor], tuple[Tensor, ...]]
    to_dense: Callable[..., Tensor]  # of the parts and the number of columns

    def names(self, name: str) -> list[str]:
        """What the tensors of a parameter are called in a program."""
        return [f"{name}_{part}" for part in self.parts]


FORMATS = {
    "csr_linear": Format(("crow", "col", "values"), csr.pack, csr.to_dense),
    "sparse24_linear": Format(("values", "meta"), semi_structured.pack, semi_structured.to_dense),
}

# the calls that can be replaced: their arguments x, weight and bias. All but the first have the weight as x W
CALLS = {
    aten.linear.default: ("input", "weight", "bias"),
    aten.addmm.default: ("mat1", "mat2", "self"),
    aten.mm.default: ("self", "mat2", ""),
    aten.matmul.default: ("self", "other", ""),
}


def target(op: str) -> Any:
    return getattr(torch.ops.fxcompress, op).default


def why_dense(program: Program, p: Projection) -> str:
    """Why no sparse op can stand in for the calls that use a matrix, empty where one can."""
    users = {user for node in program.graph.find_nodes(op="get_attr", target=p.name) for user in node.users}
    others = [user for user in users if user not in p.calls]
    if others or not p.sources:
        return f"{op_name(others[0].target)} reads it too" if others else p.dense
    if len({call.target for call in p.calls}) > 1:
        return "ops of different kinds multiply by it"
    for call in p.calls:
        if call.target not in CALLS:
            return f"{op_name(call.target)} has no sparse form"
        given, (_, weight, bias) = bind(call), CALLS[call.target]
        if getattr(given[weight], "target", None) != p.name:
            return "it is multiplied from the left"
        if any(given.get(factor, 1) != 1 for factor in ("alpha", "beta")) or not _is_vector(given.get(bias)):
            return "what is added to its product is no bias"
    return ""


def lower(program: Program, name: str, op: str) -> None:
    """Let a sparse op multiply by a parameter, in place; ``program.changed()`` is to follow."""
    weight, users = graph.get_attr(program.module, name), program.graph.find_nodes(op="get_attr", target=name)
    calls = [user for node in users for user in node.users]
    program.lowered[name] = Lowered(op, calls[0].target, tuple(weight.shape), weight.requires_grad)
    made = FORMATS[op].pack(_matrix(weight.detach(), calls[0].target))
    names = FORMATS[op].names(name)
    for part, tensor in zip(names, made, strict=True):
        program.set_state(part, tensor)
    for call in calls:
        x, _, bias = (bind(call).get(argument) for argument in CALLS[call.target])
        with program.graph.inserting_before(call):
            operands = (x, *map(program.graph.get_attr, names), bias)
            _replace(call, program.graph.call_function(target(op), operands))
    graph.drop_dead_code(program.graph)
    graph.drop_tensor(program.module, name)


def restored(program: Program) -> Program:
    """The program with all its matrices dense again; itself where none is held by a sparse op."""
    if not program.lowered:
        return program
    new = program.clone()
    for name, was in program.lowered.items():
        names = FORMATS[was.op].names(name)
        new.set_state(name, torch.nn.Parameter(unpacked(program, name), requires_grad=was.requires_grad))
        for call in _calls(new, was.op, names[0]):
            given = dict(zip(CALLS[was.call], (call.args[0], None, call.args[-1]), strict=True))
            with new.graph.inserting_before(call):
                given[CALLS[was.call][1]] = new.graph.get_attr(name)
                arguments = [given[a.name] for a in was.call._schema.arguments if a.name in given]
                _replace(call, new.graph.call_function(was.call, tuple(arguments)))
        graph.drop_dead_code(new.graph)
        for part in names:
            graph.drop_tensor(new.module, part)
    new.lowered.clear()
    new.changed()
    return new


def unpacked(program: Program, name: str) -> Tensor:
    """The value of a parameter that a sparse op holds."""
    was = program.lowered[name]
    parts = [graph.get_attr(program.module, part) for part in FORMATS[was.op].names(name)]
    columns = was.shape[-1] if was.call is aten.linear.default else was.shape[0]
    return _matrix(FORMATS[was.op].to_dense(*parts, columns), was.call).contiguous()


def held(program: Program) -> list[tuple[int, int]]:
    """(weights, zeros among them; bytes of one) of each matrix that a sparse op holds."""
    state = program.state if program.lowered else {}
    return [(math.prod(was.shape), state[f"{name}_values"].element_size()) for name, was in program.lowered.items()]


def _matrix(value: Tensor, call: Any) -> Tensor:
    """A parameter as (outputs, columns), and the other way round."""
    return value if call is aten.linear.default else value.T


def _calls(program: Program, op: str, first: str) -> list[fx.Node]:
    found = program.graph.find_nodes(op="call_function", target=target(op))
    return [call for call in found if call.args[1].target == first]  # type: ignore[union-attr]


def _replace(old: fx.Node, new: fx.Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _is_vector(bias: Any) -> bool:
    return bias is None or (isinstance(bias, fx.Node) and bias.meta["val"].dim() == 1)
