"""Statistics of activations, gathered at nodes while the graph runs over batches: one sweep for all who asked.

An observer needs memory for one vector a dim, whatever the number of batches. A model whose weights are in files runs
piece by piece (``fxcompress.segments``), each weight read once for all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph, sums
from fxcompress.axes import AxisMap
from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.layout import Tokens
from fxcompress.program import Program
from fxcompress.segments import Kept, Segment, segments
from fxcompress.statistics import Statistics, Watch
from fxcompress.streamed import Run
from fxcompress.sums import Sums


class Observer(Run):
    """Run batches and add up what is watched. Raises CompressError, naming the node, where activations are NaN."""

    def __init__(self, program: Program, watches: Iterable[Watch]) -> None:
        super().__init__(program.module, program.readers)
        self.program, self.sums = program, dict[Watch, Sums]()
        self.tokens = Tokens.of(program.get(AxisMap))
        self._nodes = {node.name: node for node in self.module.graph.nodes}
        self._place = {name: i for i, name in enumerate(self._nodes)}
        self._at: dict[fx.Node, list[Watch]] = {}  # what is complete with this node
        for watch in dict.fromkeys(watches):
            last = max(watch.nodes, key=lambda name: self._place[name])
            self._at.setdefault(self._nodes[last], []).append(watch)
        self._needed = {self._nodes[name] for at in self._at.values() for watch in at for name in watch.nodes}
        self._seen: dict[fx.Node, Any] = {}
        whole = Segment(tuple(self.module.graph.nodes)[:-1], ())
        self.parts = segments(program) if self.readers else [whole]

    @torch.no_grad()
    def sweep(self, batches: Sequence[Batch], progress: Callable[[], None] = lambda: None) -> Statistics:
        """Run all batches; ``progress`` is called for each part and batch. Weights in files are read once for all."""
        with Kept() as kept:
            for i, batch in enumerate(batches):
                kept.put(i, dict(zip(self.program.inputs, self.program.bind(**batch), strict=True)))
            for j, part in enumerate(self.parts):
                self.hold(part.weights)
                for i, batch in enumerate(batches):
                    self._mask = mask_of(batch)
                    kept.put(i, self._run_part(part, kept.take(i), last=j + 1 == len(self.parts)))
                    progress()
        self.hold(())
        return Statistics(self.sums)

    def _run_part(self, part: Segment, values: dict[str, Any], last: bool) -> dict[str, Any]:
        """Values by node name, before and after a part of the graph."""
        named = {self._nodes[name]: value for name, value in values.items()}
        self._seen = {node: value for node, value in named.items() if node in self._needed}
        for node in [n for n in self._seen if n in self._at and n.op == "placeholder"]:
            self._add(node)
        env = self.run_part(part.nodes, named)
        alive = {node.name: env[node] for node in part.alive}
        return alive if last else alive | {node.name: value for node, value in self._seen.items()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._needed:
            self._seen[n] = value
            self._add(n)
        return value

    def _add(self, node: fx.Node) -> None:
        """Add up what is complete with a node, and let go of values that nothing waits for."""
        for watch in self._at.get(node, ()):
            self.sums[watch] = sums.add(self.sums.get(watch), self._sums_of(watch))
        here = self._place[node.name]
        waiting = {name for n, at in self._at.items() if self._place[n.name] > here for w in at for name in w.nodes}
        self._seen = {n: value for n, value in self._seen.items() if n.name in waiting}

    def _sums_of(self, watch: Watch) -> Sums:
        values, mask = [], None
        for name in watch.nodes:
            node = self._nodes[name]
            value, mask = self.tokens.split(node, watch.dim, self._seen[node].detach(), self._mask)
            values.append(value if watch.block == 1 else value.unflatten(-1, (-1, watch.block)).norm(dim=-1))
        assert mask is not None
        found: Sums | None = None
        for i in range(len(mask)):  # one sequence at a time: sums in float64 take twice the memory
            one = slice(i, i + 1)
            found = sums.add(found, sums.KINDS[watch.kind]([value[one] for value in values], mask[one], watch.size))
        assert found is not None
        if any(value.isnan().any() for value in found.values()):
            raise CompressError(f"the activations hold NaN at {said(self._nodes[watch.nodes[-1]])}")
        return found


def said(node: fx.Node) -> str:
    """A node as a user finds it."""
    where = graph.module_path(node)
    return f"{node.name} of {where}" if where else node.name


def mask_of(batch: Batch) -> Tensor | None:
    """Which tokens of a batch are no padding; None for batches that are not of tokens."""
    if batch.get("attention_mask") is not None:
        return batch["attention_mask"].bool()
    ids = batch.get("input_ids")
    return None if ids is None else torch.ones_like(ids, dtype=torch.bool)
