"""The axes of a program: one pass over the graph emits every op's equations, and what stays free can be cut.

A *group* is one free axis with all the places where it occurs in parameters. Cutting it means: the same indices out of
every one of those places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import fxcompress.kernels
import fxcompress.rules  # noqa: F401  (both register the rules of their ops)
from fxcompress import graph
from fxcompress.address import Input
from fxcompress.axis import Axis, Dim, Dims, Equations, factors, leaves, resolve
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.rule import RULES, Call, Reduction, op_name, shape_of


@dataclass(frozen=True)
class Slot:
    """One dim of a tensor, by the tensor's name."""

    name: str
    dim: int

    def __str__(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(frozen=True, eq=False)
class Group:
    """One free axis. ``sizes``: of the axes outside it, along which its kept indices may differ, then its own."""

    key: str  # a stable name: the slot that shows the axis most plainly
    axis: Axis
    sizes: tuple[int, ...]
    roles: frozenset[str]
    slots: tuple[Slot, ...]
    pinned: tuple[str, ...]  # why it cannot be cut; empty when it can
    border: bool = False  # pinned by nothing but the program's inputs and outputs

    @property
    def size(self) -> int:
        return self.sizes[-1]

    @property
    def total(self) -> int:
        """Indices over all outer axes: 16 heads are 4 groups of 4."""
        product = 1
        for n in self.sizes:
            product *= n
        return product


class AxisMap:
    """Dims of every node, and the groups they make up. Built from a Program, immutable."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.dims: dict[fx.Node, Any] = {}
        self.state: dict[str, Dims] = {}
        self.reductions: dict[fx.Node, list[Reduction]] = {}
        self.letters: dict[fx.Node, dict[str, Dim]] = {}
        self.values: dict[fx.Node, Any] = {}  # what the values of index tensors point into
        self.inputs: dict[str, Input] = {}
        self.needs: list[tuple[fx.Node, Dim, int, str]] = []  # (op, dim, how many must stay at least, why)
        self._mixed: dict[fx.Node, list[Dim]] = {}
        self._contexts: list[tuple[Dim, list[Dim], list[Dim]]] = []
        self._roles: list[tuple[str, Dim]] = []
        equations = Equations()
        for node in program.graph.nodes:
            self._visit(node, equations)
        for addresses in self.inputs.values():
            self._addressed(addresses, equations)
        for node, dim in self._squares():
            equations.pin(dim, f"it meets itself in one dim of {node.name}")
        self.pinned = equations.pinned()
        self.borders = equations.bordering()
        self.roles = self._resolve_roles()
        self.outer = self._outer_axes({axis for dim in equations.unequal for axis in leaves(dim)})
        self.groups = self._make_groups()

    def __getitem__(self, key: str) -> Group:
        for group in self.groups:
            if group.key == key:
                return group
        raise CompressError(f"no group {key!r}; `fxcompress inspect` lists the groups of a model")

    def _visit(self, node: fx.Node, equations: Equations) -> None:
        value = node.meta.get("val")
        if node.op == "get_attr":
            tensor = graph.get_attr(self.program.module, node.target)
            if node.target not in self.state:
                self.state[node.target] = _fresh(tensor)
            self.dims[node] = self.state[node.target]
        elif node.op == "placeholder" and isinstance(value, Tensor):
            self.dims[node] = _fresh(value)
            for dim in self.dims[node]:
                equations.pin(dim, f"it is a dim of the input {node.name!r}")
            if not value.is_floating_point():
                self.values[node] = self.inputs[node.name] = Input(node.name)
        elif node.op == "output":
            for used in node.all_input_nodes:
                for dim in self._all_dims(used):
                    equations.border(dim, "it is a dim of the model's output")
                values = self.values.get(used)
                if isinstance(values, Input):
                    values.computed = values.computed or "the model's output"
                elif isinstance(values, tuple):
                    equations.border(values, "its addresses are an output of the model")
        elif node.op == "call_function" and any(True for _ in graph.tensors(value)):
            self._call(node, value, equations)

    def _call(self, node: fx.Node, value: Any, equations: Equations) -> None:
        call = Call(node, self.dims, equations, values=self.values)
        self.dims[node] = infer(call, value)
        self._follow_values(call, equations)
        self.needs += [(node, *need) for need in call.least]
        self.reductions[node] = call.reductions
        self.letters[node] = dict(call.letters)
        self._mixed[node] = call.mixed
        self._contexts += call.contexts
        self._roles += call.roles

    def _follow_values(self, call: Call, equations: Equations) -> None:
        """Movement carries values along; what is computed from them is nobody's address any more."""
        self.values[call.node] = values_of(call, self.dims[call.node])
        if self.values[call.node] is None:
            for values in (self.values[n] for n in call.pointing()):
                if isinstance(values, Input):
                    values.computed = values.computed or call.name
                elif isinstance(values, tuple):
                    equations.pin(values, f"its addresses are computed with, at {call.name}")

    def _addressed(self, values: Input, equations: Equations) -> None:
        """What one input addresses shares its numbering."""
        for dim in values.addressed:
            equations.tie(values.addressed[0], dim, f"both are addressed by the input {values.name!r}")
            equations.border(dim, f"it is addressed by the input {values.name!r}")
            if values.computed:
                equations.pin(
                    dim, f"it is addressed by {values.name!r}, whose values are computed with at {values.computed}"
                )
            elif values.name != "position_ids":
                self._roles.append(("vocabulary", dim))

    def _all_dims(self, node: fx.Node) -> Iterator[Dim]:
        dims = self.dims.get(node, ())
        for item in dims if isinstance(dims, list) else [dims]:
            yield from item

    def _squares(self) -> Iterator[tuple[fx.Node, Dim]]:
        """Axes that occur twice in one product, as after flattening the scores of all pairs of heads."""
        for node in self.dims:
            for dim in self._all_dims(node):
                yield from ((node, (axis,)) for axis in _repeated(dim))

    def _resolve_roles(self) -> dict[Axis, set[str]]:
        from fxcompress.roles import read_roles

        roles: dict[Axis, set[str]] = {}
        for role, dim in self._roles:
            for axis in leaves(dim):
                roles.setdefault(axis, set()).add(role)
        for axis, role in read_roles(self):
            roles.setdefault(axis, set()).add(role)
        return roles

    def _outer_axes(self, unequal: set[Axis]) -> dict[Axis, tuple[Axis, ...]]:
        """For each axis the ones outside it along which its kept indices may differ, major to minor.

        A choice may differ along r only if every tensor that has the axis has r too (else one value would stand for
        several choices), if no op lets values at different r meet or takes one r for another, and if in every parameter
        r lies outside of the axis, in the same dim or in one other dim alone, so that the choice is a list of indices
        at every r.
        """
        found: dict[Axis, dict[Axis, None]] = {}
        for dims in self.state.values():
            for axis, before, around in _occurrences(dims):
                allowed = found.setdefault(axis, dict.fromkeys((*before, *around)))
                found[axis] = {a: None for a in allowed if a in before or a in around}
        for node in self.dims:
            mixed = {axis for dim in self._mixed.get(node, ()) for axis in leaves(dim)}
            for dims in self._tensors_at(node):
                for axis, before, around in _occurrences(dims, after=True):
                    if axis in found and axis not in mixed:
                        near = {*before, *around} - mixed
                        found[axis] = {a: None for a in found[axis] if a in near}
        for dim, context, apart in self._contexts:
            shared = {a for other in context for a in leaves(other)} - {a for other in apart for a in leaves(other)}
            for axis in set(leaves(dim)) & found.keys():
                found[axis] = {a: None for a in found[axis] if a in shared}
        for axis in found:  # of two that could differ along one another, the first may not
            found[axis] = {a: None for a in found[axis] if a not in unequal and axis not in found.get(a, ())}
        for dims in self.state.values():
            _untangle(dims, found)
        return {axis: tuple(outer) for axis, outer in found.items()}

    def _tensors_at(self, node: fx.Node) -> list[Dims]:
        """The tensors that meet at a node: its operands and what it returns."""
        at = [self.dims[n] for n in node.all_input_nodes if isinstance(self.dims.get(n), tuple)]
        own = self.dims[node]
        return at + (own if isinstance(own, list) else [own])

    def _make_groups(self) -> list[Group]:
        slots: dict[Axis, dict[Slot, None]] = {}
        plainest: dict[Axis, tuple[int, str]] = {}
        for name, dims in self.state.items():
            for i, dim in enumerate(dims):
                members = list(leaves(dim))
                for position, axis in enumerate(members):
                    slots.setdefault(axis, {})[Slot(name, i)] = None
                    key = f"{name}[{i}]" + (f".{position}" if len(members) > 1 else "")
                    plainest[axis] = min(
                        plainest.get(axis, (len(members), key)), (len(members), key), key=lambda k: k[0]
                    )
        return [
            Group(
                key=plainest[axis][1],
                axis=axis,
                sizes=(*(a.size for a in self.outer[axis]), axis.size),  # type: ignore[arg-type]
                roles=frozenset(self.roles.get(axis, ())),
                slots=tuple(places),
                pinned=(*self.pinned.get(axis, ()), *self.borders.get(axis, ())),
                border=axis in self.borders and axis not in self.pinned,
            )
            for axis, places in slots.items()
        ]


def infer(call: Call, value: Any) -> Any:
    """The dims of what a call returns: by its rule, else as a pointwise op, else pinned."""
    if call.node.target in RULES:
        return RULES[call.node.target].infer(call)
    if isinstance(call.node.target, torch._ops.OpOverload) and torch.Tag.pointwise in call.node.target.tags:
        return pointwise(call)
    return _no_rule(call, value)


def pointwise(call: Call) -> Dims:
    """Elementwise ops tie the dims that they broadcast together."""
    operands = [call.dims(node) for node in call.operands()]
    rank = max(map(len, operands), default=0)
    out: list[Dim] = []
    for i in range(-rank, 0):
        present = [dims[i] for dims in operands if len(dims) >= -i and factors(dims[i])]
        for other in present[1:]:
            call.tie(present[0], other)
        out.append(present[0] if present else ())
    return tuple(out)


def values_of(call: Call, dims: Any) -> Any:
    """What the output's values point into: said by the rule, or what they pointed into before they were moved."""
    sources = call.pointing()
    if call.points is not None or len(sources) != 1 or set(call.operands()) - set(sources):
        return call.points
    if call.node.target not in RULES or not RULES[call.node.target].moves:
        return None
    values = call.values[sources[0]]
    if isinstance(values, list):  # an item of several outputs
        return values[call.node.args[1]]  # type: ignore[index]
    return [values] * len(dims) if isinstance(dims, list) else values


def _no_rule(call: Call, value: Any) -> Any:
    """Pin everything that an unknown op touches: safe, and said."""
    why = f"{op_name(call.node.target)} has no rule"
    outputs = [call.fresh(shape_of(tensor)) for tensor in graph.tensors(value)]
    for dims in [*(call.dims(node) for node in call.operands()), *outputs]:
        for dim in dims:
            call.pin(dim, why)
    return outputs[0] if isinstance(value, Tensor) else outputs


def _fresh(tensor: Tensor) -> Dims:
    return tuple((Axis(n),) if n != 1 else () for n in shape_of(tensor))


def _repeated(dim: Dim) -> Iterator[Axis]:
    """The free axes that occur in two factors of a product, be it within sums."""
    seen: set[Axis] = set()
    for axis in factors(dim):
        inside = set(leaves((axis,)))
        yield from seen & inside
        seen |= inside
        for part in axis.parts:
            yield from _repeated(part)


def _occurrences(dims: Dims, after: bool = False) -> Iterator[tuple[Axis, tuple[Axis, ...], tuple[Axis, ...]]]:
    """Each free axis of a tensor, with the free axes outside of it in its dim and those that are dims around it.

    Only axes that the tensor has at every index of the axis count, and those of other dims only where they stand in one
    alone: else it would not be said which index is meant. With ``after`` also those inside of it in its dim.
    """
    plain = [[a for a in map(resolve, factors(dim)) if a.kind == "free"] for dim in dims]
    times = Counter(a for dim in dims for a in leaves(dim))
    for i, dim in enumerate(dims):
        for axis, near in _near(dim, (), after):
            others = [a for j, axes in enumerate(plain) if j != i for a in axes]
            yield axis, near, tuple(a for a in others if a is not axis and times[a] == 1)


def _untangle(dims: Dims, outer: dict[Axis, dict[Axis, None]]) -> None:
    """Forget outer axes where the choices on dims of one tensor would depend on each other in a circle.

    In w[a, (b c)] with a's choice by c and b's by a, neither dim could be cut before the other.
    """
    inside = [dict.fromkeys(leaves(dim)) for dim in dims]
    reads: dict[int, set[int]] = {i: set() for i in range(len(dims))}
    for i, axes in enumerate(inside):
        for axis in axes:
            for a in [a for a in outer.get(axis, ()) if a not in axes]:
                held = {j for j, others in enumerate(inside) if a in others}
                if any(i in _reached(reads, j) for j in held):
                    del outer[axis][a]
                else:
                    reads[i] |= held


def _reached(reads: dict[int, set[int]], start: int) -> set[int]:
    seen, todo = set(), [start]
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo += reads[i]
    return seen


def _near(dim: Dim, before: tuple[Axis, ...], after: bool) -> Iterator[tuple[Axis, tuple[Axis, ...]]]:
    """Each free axis of a dim with the free axes of the products that it stands in, those before it or all of them."""
    axes = [resolve(axis) for axis in factors(dim)]
    for i, axis in enumerate(axes):
        near = (*before, *(a for a in (axes if after else axes[:i]) if a.kind == "free" and a is not axis))
        if axis.kind == "free":
            yield axis, near
        else:
            for part in axis.parts:
                yield from _near(part, near, after)
