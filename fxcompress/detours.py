"""Run a program as steps would leave it, each alone: from where it differs, and without a rewrite.

    whole      embedding ─ layer 0 ─ layer 1  ─ layer 2 ─ head
    detour                         └ layer 1' ─ layer 2 ─ head

A detour reads cut weights, gives calls their new sizes and goes around removed modules. What comes before the first
call that differs has the values of the whole program, so that a step costs what comes behind it (Puzzle, arXiv
2411.19146, section on scoring).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import blocks, graph
from fxcompress.axes import AxisMap
from fxcompress.batches import Batch
from fxcompress.keep import Keep, select
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.rewrite import check_needs, cut_tensors, keep_by_axis, resized
from fxcompress.streamed import Run


@dataclass(frozen=True)
class Change:
    """What a step changes: weights, arguments of calls, and outputs of modules, instead of which others are read."""

    weights: Mapping[str, Callable[[], Tensor]]
    arguments: Mapping[fx.Node, tuple[Any, Any]]
    instead: Mapping[fx.Node, fx.Node]

    @classmethod
    def of(cls, program: Program, step: Step) -> Change:
        """Raises CompressError for a step that cannot be carried out."""
        axes = program.get(AxisMap)
        keep = keep_by_axis(axes, step.keep)
        check_needs(axes, keep)
        weights = {name: partial(_read_cut, program, name, dims, keep) for name, dims in cut_tensors(axes, keep)}
        removed = [blocks.read_block(program, path) for path in step.remove]
        return cls(weights, dict(resized(axes, keep)), {block.output: block.source for block in removed})

    def changes(self, node: fx.Node) -> bool:
        """Does the call differ, whatever it reads from others?"""
        read = (str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
        return node in self.instead or node in self.arguments or any(name in self.weights for name in read)

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """The values that a call takes, weights left out."""
        if node in self.instead:
            return [self.instead[node]]
        return [read for read in node.all_input_nodes if read.op != "get_attr"]


def _read_cut(program: Program, name: str, dims: Any, keep: Keep) -> Tensor:
    """Anew for every call, as many weights would be held else."""
    read = program.readers.get(name)
    value = graph.get_attr(program.module, name).detach() if read is None else read()
    return select(value, dims, keep, program.get(AxisMap).outer)


@dataclass(frozen=True)
class Detour:
    """The calls from the first that differs to the ends, at ``start`` in the graph, and the values that they need."""

    change: Change
    start: int
    calls: tuple[fx.Node, ...]
    needs: frozenset[fx.Node]

    @classmethod
    def of(cls, change: Change, nodes: Sequence[fx.Node], ends: Iterable[fx.Node]) -> Detour:
        start = next((i for i, node in enumerate(nodes) if change.changes(node)), len(nodes))
        behind, calls, needs, todo = set(nodes[start:]), set[fx.Node](), set[fx.Node](), list(ends)
        while todo:
            node = todo.pop()
            if node not in behind:
                needs.add(node)
            elif node not in calls:
                calls.add(node)
                todo += change.reads(node)
        return cls(change, start, tuple(n for n in nodes[start:] if n in calls), frozenset(needs))

    def last_reads(self, ends: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
        """The values that nothing reads after a call."""
        last = {read: call for call in self.calls for read in self.change.reads(call) if read not in ends}
        found: dict[fx.Node, list[fx.Node]] = {}
        for read, call in last.items():
            found.setdefault(call, []).append(read)
        return found


class Detours(Run):
    """Run batches through a program as each of some steps would leave it. ``ends``: the values that are asked for.

    Weights in files are read again for every step and batch. Raises CompressError for steps that cannot be carried out.
    """

    def __init__(self, program: Program, steps: Iterable[Step], ends: Iterable[fx.Node]) -> None:
        super().__init__(program.module, program.readers)
        self.program, self.ends = program, tuple(ends)
        self._nodes = list(self.module.graph.nodes)[:-1]
        self._detours = [Detour.of(Change.of(program, step), self._nodes, self.ends) for step in steps]
        self._order = sorted(range(len(self._detours)), key=self._start)
        self._until: dict[fx.Node, int] = {}  # where each value is needed last, beyond what reads it in the graph
        for i in self._order:
            self._until |= dict.fromkeys(self._detours[i].needs, self._start(i))
        self._until |= dict.fromkeys(self.ends, len(self._nodes))
        self._kept: dict[fx.Node, Any] = {}
        self._now: Change | None = None  # none while the program runs as it is

    @torch.no_grad()
    def whole(self, batch: Batch) -> tuple[Any, ...]:
        """The ends in the program as it is."""
        self.run_part(self._nodes, self._begin(batch))
        return self._ends_in(self._kept)

    @torch.no_grad()
    def around(self, batch: Batch) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The position of a step and the ends after it, the first to differ first. All before it runs once for all."""
        env, done = self._begin(batch), 0
        for start, several in groupby(self._order, key=self._start):
            env = self.run_part(self._nodes[done:start], env)
            for i in several:
                yield i, self._after(self._detours[i])
            self._kept = {node: value for node, value in self._kept.items() if self._until[node] > start}
            done = start
        self._kept = {}

    def _start(self, i: int) -> int:
        return self._detours[i].start

    def _begin(self, batch: Batch) -> dict[fx.Node, Any]:
        inputs = self.module.graph.find_nodes(op="placeholder")
        env = dict(zip(inputs, self.program.bind(**batch), strict=True))
        self._kept = {node: value for node, value in env.items() if node in self._until}
        return env

    def _after(self, detour: Detour) -> tuple[Any, ...]:
        last = detour.last_reads(self.ends)
        self._now, self.env = detour.change, {node: self._kept[node] for node in detour.needs}
        for node in detour.calls:
            source = detour.change.instead.get(node)
            self.env[node] = self.run_node(node) if source is None else self.env[source]
            for read in last.get(node, ()):
                del self.env[read]
        found = self._ends_in(self.env)
        self._now, self.env = None, {}
        return found

    def _ends_in(self, values: Mapping[fx.Node, Any]) -> tuple[Any, ...]:
        return tuple(values[end] for end in self.ends)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self._now is None and n in self._until:
            self._kept[n] = value
        return value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        changed = self._now.arguments if self._now else {}
        return self.filled(changed.get(n, (n.args, n.kwargs)))

    def value(self, node: fx.Node) -> Any:
        """A node's value; a weight that the step cuts is cut here, for one call."""
        if self._now and node.op == "get_attr" and str(node.target) in self._now.weights:
            return self._now.weights[str(node.target)]()
        return super().value(node)
