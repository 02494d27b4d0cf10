"""What a model loses when one of its layers is replaced: the rewritten graph runs from where it differs.

Each call that is the same as in the whole model, weights included, has the same value there; so the whole model runs
once, and after it, for each replacement, what comes behind the replaced layer (Puzzle, arXiv 2411.19146, section on
scoring). At most one layer's replacements are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph, sums
from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.observe import mask_of
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.searching.subblocks import rewritten
from fxcompress.skipping import last_hidden, losses
from fxcompress.streamed import Run
from fxcompress.sums import Sums


@torch.no_grad()
def losses_of(
    program: Program, steps: Sequence[Step], batches: Sequence[Batch], advance: Callable[[], None] = lambda: None
) -> list[dict[str, float]]:
    """What each step alone costs on batches of token ids (batch, length), as means over the tokens that predict one.

    "loss", nats; "kl", divergence of the logits from the whole model's, nats; "hidden", mean square by which the last
    hidden state moves. ``advance`` is called for each step and batch. Raises CompressError where they are not finite.
    """
    replaced = [_Replaced(program, step) for step in steps]
    whole = _Whole(program, {node for one in replaced for node in one.needs.values()})
    totals: list[Sums | None] = [None] * len(steps)
    for batch in batches:
        mask = mask_of(batch)
        if mask is None:
            raise CompressError("layers are scored by a loss: calibrate with batches of token ids, (batch, length)")
        batch = {name: value.to(program.device) for name, value in batch.items()}
        values = whole.values(batch)
        for i, one in enumerate(replaced):
            found = losses(batch["input_ids"], mask.to(program.device), whole.ends_in(values), one.ends_after(values))
            totals[i] = sums.add(totals[i], found)
            advance()
    return [_means(total, step) for total, step in zip(totals, steps, strict=True)]


def _means(total: Sums | None, step: Step) -> dict[str, float]:
    assert total is not None
    means = {name: float(total[name] / total["count"]) for name in ("loss", "kl", "hidden")}
    if not all(map(math.isfinite, means.values())):
        changed = ", ".join([*step.keep, *step.remove])
        raise CompressError(f"the loss is not finite when {changed} is replaced alone")
    return means


class _Whole(Run):
    """The whole model, run with some of its values kept."""

    def __init__(self, program: Program, kept: set[fx.Node]) -> None:
        super().__init__(program.module, program.readers)
        self.program, self.ends = program, _ends(program)
        self._kept, self._values = kept | set(self.ends), dict[fx.Node, Any]()

    def values(self, batch: Batch) -> dict[fx.Node, Any]:
        self._values = {}
        self.run(*self.program.bind(**batch))
        return self._values

    def ends_in(self, values: dict[fx.Node, Any]) -> tuple[Tensor, Tensor]:
        output, hidden = self.ends
        return values[output], values[hidden]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept:
            self._values[n] = value
        return value


class _Replaced(Run):
    """A rewritten program: its calls that differ from the original's, and what these need of the original's values."""

    def __init__(self, program: Program, step: Step) -> None:
        small = rewritten(program, step)
        super().__init__(small.module, small.readers)
        same = _unchanged(program, small)
        self.ends = _ends(small)
        self.calls = [n for n in small.graph.nodes if n not in same and n.op == "call_function"]
        read = {n for call in self.calls for n in call.all_input_nodes} | set(self.ends)
        self.needs = {n: same[n] for n in read if n in same and n.op != "get_attr"}

    def ends_after(self, values: dict[fx.Node, Any]) -> tuple[Tensor, Tensor]:
        """Logits and last hidden state, from the values of the whole model."""
        self.env = {node: values[twin] for node, twin in self.needs.items()}
        for node in self.calls:
            self.env[node] = self.run_node(node)
            for used in self.user_to_last_uses.get(node, ()):
                if used not in self.ends:
                    self.env.pop(used, None)
        output, hidden = (self.env[end] for end in self.ends)
        self.env = {}
        return output, hidden


def _ends(program: Program) -> tuple[fx.Node, fx.Node]:
    """Logits and last hidden state."""
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0]
    return output, last_hidden(output)


def _unchanged(whole: Program, small: Program) -> dict[fx.Node, fx.Node]:
    """The nodes of a rewritten program that compute what they did, with their twins: rewriting leaves names alone."""
    twins, same = {node.name: node for node in whole.graph.nodes}, dict[fx.Node, fx.Node]()
    for node in small.graph.nodes:
        twin = twins.get(node.name)
        if twin is None or (node.op, node.target) != (twin.op, twin.target) or not _reads_same(node, twin, same):
            continue
        if node.op != "get_attr" or _is_same_tensor(whole, small, str(node.target)):
            same[node] = twin
    return same


def _reads_same(node: fx.Node, twin: fx.Node, same: dict[fx.Node, fx.Node]) -> bool:
    """Are all arguments what they were, and all values among them unchanged?"""
    mapped = fx.node.map_arg((node.args, node.kwargs), lambda n: same.get(n))
    return mapped == (twin.args, twin.kwargs)


def _is_same_tensor(whole: Program, small: Program, name: str) -> bool:
    """Cuts make new tensors, and new readers of those in files."""
    kept = graph.get_attr(whole.module, name) is graph.get_attr(small.module, name)
    return kept and whole.readers.get(name) is small.readers.get(name)
