"""What a model loses without some of its modules: run again from where they stand, everything before is the same.

For each set of modules: the loss, the KL divergence of the logits from those of the whole model, and the mean square
by which the last hidden state moves (MiniPuzzle: Nemotron-H, arXiv 2504.03624, section 4). All are sums over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress import blocks, sums
from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.observe import mask_of, said
from fxcompress.program import Program
from fxcompress.statistics import Statistics, Watch
from fxcompress.streamed import Run
from fxcompress.sums import Sums

aten = torch.ops.aten


@dataclass(frozen=True)
class _Detour:
    """The calls that are carried out without some modules, and what they need of the whole model's values."""

    instead: Mapping[fx.Node, fx.Node]  # a module's output -> what it was added to
    calls: tuple[fx.Node, ...]
    needs: frozenset[fx.Node]


class Skips(Run):
    """Run batches through the whole model, and again without each set of modules.

    Weights in files are read again for every set and batch.
    """

    def __init__(self, program: Program, watches: Iterable[Watch]) -> None:
        super().__init__(program.module, program.readers)
        self.program, self.sums = program, dict[Watch, Sums]()
        self._output: fx.Node = next(n for n in self.module.graph.nodes if n.op == "output").args[0][0]
        self._hidden = last_hidden(self._output)
        self._detours = {watch: self._detour(watch.nodes) for watch in watches}
        self._kept = {node for detour in self._detours.values() for node in detour.needs}
        self._values: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def sweep(self, batches: Sequence[Batch], progress: Callable[[], None] = lambda: None) -> Statistics:
        for batch in batches:
            mask = mask_of(batch)
            if mask is None:
                raise CompressError("layers are scored by a loss: calibrate with batches of token ids, (batch, length)")
            self._values = {}
            self.run(*self.program.bind(**batch))
            whole = self._values[self._output], self._values[self._hidden]
            for watch, detour in self._detours.items():
                part = self._without(detour)
                found = losses(batch["input_ids"], mask, whole, part)
                if any(value.isnan() for value in found.values()):
                    raise CompressError(f"the logits hold NaN at {said(self._output)}")
                self.sums[watch] = sums.add(self.sums.get(watch), found)
                progress()
        return Statistics(self.sums)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept or n in (self._output, self._hidden):
            self._values[n] = value
        return value

    def _detour(self, paths: Sequence[str]) -> _Detour:
        found = [blocks.read_block(self.program, path) for path in paths]
        instead = {block.output: block.source for block in found}
        changed: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node in instead or changed.intersection(node.all_input_nodes):
                changed.add(node)
        calls: set[fx.Node] = set()
        needs: set[fx.Node] = set()
        todo = [self._output, self._hidden]
        while todo:
            node = todo.pop()
            if node not in changed:
                needs.add(node)
            elif node not in calls:
                calls.add(node)
                todo += _reads(node, instead)
        return _Detour(instead, tuple(n for n in self.module.graph.nodes if n in calls), frozenset(needs))

    def _without(self, detour: _Detour) -> tuple[Tensor, Tensor]:
        """Logits and last hidden state without the modules."""
        ends = (self._output, self._hidden)
        last = {read: node for node in detour.calls for read in _reads(node, detour.instead) if read not in ends}
        self.env = {node: self._values[node] for node in detour.needs}
        for node in detour.calls:
            source = detour.instead.get(node)
            self.env[node] = super().run_node(node) if source is None else self.env[source]
            for read in _reads(node, detour.instead):
                if last.get(read) is node:
                    self.env.pop(read, None)
        return self.env[self._output], self.env[self._hidden]


def _reads(node: fx.Node, instead: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The values that a call takes, weights left out."""
    if node in instead:
        return [instead[node]]
    return [read for read in node.all_input_nodes if read.op != "get_attr"]


def last_hidden(output: fx.Node) -> fx.Node:
    """What the model's last projection reads. Raises CompressError where the output is made by none."""
    node = output
    while node.target not in _PROJECTIONS:
        before = [n for n in node.all_input_nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
        if not before:
            raise CompressError(
                f"the output {output.name} is given by no projection: layers cannot be scored by a loss"
            )
        node = before[0]
    return next(read for read in node.all_input_nodes if read.op != "get_attr")


_PROJECTIONS = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}


def losses(ids: Tensor, mask: Tensor, whole: tuple[Tensor, Tensor], part: tuple[Tensor, Tensor]) -> Sums:
    """Sums over the tokens that predict a next one, in float64; logits (b, l, v), hidden states (b, l, h)."""
    counts = mask[:, 1:] & mask[:, :-1]
    (reference, before), (logits, after) = ((a[:, :-1][counts], b[:, :-1][counts]) for a, b in (whole, part))
    loss = F.cross_entropy(logits.float(), ids[:, 1:][counts], reduction="sum")
    probable, ours = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    kl = F.kl_div(ours, probable, reduction="sum", log_target=True)
    hidden = (after.double() - before.double()).square().mean(-1).sum()
    found = {"count": counts.sum(), "loss": loss, "kl": kl, "hidden": hidden}
    return {name: value.double().cpu() for name, value in found.items()}
