"""How far the outputs of a model move by a step alone, in sums over tokens.

loss      cross-entropy of the next token after the step, nats
kl        KL divergence of the logits from those of the whole model, nats
hidden    square by which the last hidden state moves, mean over its channels (MiniPuzzle: Nemotron-H, arXiv 2504.03624)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress import sums
from fxcompress.batches import Batch
from fxcompress.detours import Detours
from fxcompress.errors import CompressError
from fxcompress.observe import mask_of
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.sums import Sums

aten = torch.ops.aten
_PROJECTIONS = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}


class Shifts:
    """By each of some steps. Raises CompressError for steps that cannot be carried out, and where there is no logit."""

    def __init__(self, program: Program, steps: Iterable[Step]) -> None:
        self.program, self.steps = program, tuple(steps)
        self._runs = Detours(program, self.steps, ends(program))

    def sweep(self, batches: Sequence[Batch], advance: Callable[[], None] = lambda: None) -> list[Sums]:
        """Sums for each step over batches of token ids (batch, length); ``advance`` is called for each step and batch.

        "count" is of the tokens that predict a next one. Raises CompressError where a sum is not finite.
        """
        total: list[Sums | None] = [None] * len(self.steps)
        for batch in batches:
            for i, found in self._of(batch):
                total[i] = sums.add(total[i], found)
                advance()
        return [found for found in total if found is not None]

    @torch.no_grad()
    def _of(self, batch: Batch) -> Iterable[tuple[int, Sums]]:
        if mask_of(batch) is None:
            raise CompressError("layers are scored by a loss: calibrate with batches of token ids, (batch, length)")
        batch = {name: value.to(self.program.device) for name, value in batch.items()}
        reference = Reference(batch, *self._runs.whole(batch))
        for i, (logits, hidden) in self._runs.around(batch):
            found = reference.sums(logits, hidden)
            if not all(value.isfinite() for value in found.values()):
                changed = ", ".join([*self.steps[i].keep, *self.steps[i].remove])
                raise CompressError(f"the loss is not finite when {changed} is cut or left out alone")
            yield i, found


class Reference:
    """What the whole model says of a batch. logits: (batch, length, vocabulary); hidden: (batch, length, channels)."""

    def __init__(self, batch: Batch, logits: Tensor, hidden: Tensor) -> None:
        mask = mask_of(batch)
        assert mask is not None
        self.counts = mask[:, 1:] & mask[:, :-1]  # tokens that are real and followed by a real one
        self.next = batch["input_ids"][:, 1:][self.counts]
        self.probable, self.hidden = self._log_probabilities(logits), self._counted(hidden)

    def sums(self, logits: Tensor, hidden: Tensor) -> Sums:
        """Over the tokens that predict a next one, in float64."""
        ours = self._log_probabilities(logits)
        loss = F.nll_loss(ours, self.next, reduction="sum")
        kl = F.kl_div(ours, self.probable, reduction="sum", log_target=True)
        moved = (self._counted(hidden).double() - self.hidden.double()).square().mean(-1).sum()
        found = {"count": self.counts.sum(), "loss": loss, "kl": kl, "hidden": moved}
        return {name: value.double().cpu() for name, value in found.items()}

    def _counted(self, values: Tensor) -> Tensor:
        return values[:, :-1][self.counts]

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return self._counted(logits).float().log_softmax(-1)


def ends(program: Program) -> tuple[fx.Node, fx.Node]:
    """Logits, and the last hidden state: what the last projection reads. Raises CompressError where there is none."""
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0]
    node = output
    while node.target not in _PROJECTIONS:
        before = [n for n in node.all_input_nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
        if not before:
            raise CompressError(
                f"the output {output.name} is given by no projection: layers cannot be scored by a loss"
            )
        node = before[0]
    return output, next(read for read in node.all_input_nodes if read.op != "get_attr")
