"""First-order importance: what the loss would change by, were an index zero (Molchanov et al., arXiv 1611.06440).

For the value v at a node and a sequence s the contribution of index i is the sum over its tokens of v_i dL_s/dv_i, L_s
being the mean next-token cross-entropy of the sequence. Sequences are added up as the other statistics are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress import sums
from fxcompress.axes import AxisMap
from fxcompress.errors import CompressError
from fxcompress.layout import Tokens
from fxcompress.observe import mask_of, said
from fxcompress.program import Program
from fxcompress.statistics import Statistics, Watch
from fxcompress.streamed import Run
from fxcompress.sums import Sums


class Gradients(Run):
    """Run batches forth and back; all activations of one batch are in memory, and all weights."""

    def __init__(self, program: Program, watches: Iterable[Watch]) -> None:
        program = program.loaded() if program.readers else program
        super().__init__(program.module, {})
        self.program, self.sums = program, dict[Watch, Sums]()
        self.tokens = Tokens.of(program.get(AxisMap))
        self._watches = {watch.nodes[0]: watch for watch in watches}
        self._values: dict[str, Tensor] = {}

    def sweep(self, batches: Sequence[Mapping[str, Tensor]], progress: Callable[[], None] = lambda: None) -> Statistics:
        for batch in batches:
            self._values, mask = {}, mask_of(batch)
            if mask is None:
                raise CompressError("score 'taylor' needs a loss: batches of token ids, (batch, length)")
            with torch.enable_grad():
                outputs = self.run(*self.program.bind(**batch))
                sequence_losses(outputs[0], batch["input_ids"], mask).sum().backward()
            self._add(mask)
            progress()
        return Statistics(self.sums)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value  # no gradients of weights

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._watches:
            value = value if value.requires_grad else value.detach().requires_grad_()
            value.retain_grad()
            self._values[n.name] = value
        return value

    def _add(self, mask: Tensor) -> None:
        nodes = {node.name: node for node in self.module.graph.nodes}
        for name, value in self._values.items():
            gradient = torch.zeros_like(value) if value.grad is None else value.grad
            product = value.detach().double() * gradient.double()
            split, counts = self.tokens.split(nodes[name], self._watches[name].dim, product, mask)
            each = torch.where(counts[..., None], split, 0).sum(1)
            if each.isnan().any():
                raise CompressError(f"the gradients hold NaN at {said(nodes[name])}")
            watch = self._watches[name]
            self.sums[watch] = sums.add(self.sums.get(watch), sums.over_samples(each.abs()))


def sequence_losses(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence, in float32: logits (b, l, v), ids and mask (b, l) -> (b,).

    A token counts when it and the one before it are no padding.
    """
    counts = mask[:, 1:] & mask[:, :-1]
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    losses = torch.where(counts, losses.view_as(counts), 0)
    return losses.sum(1) / counts.sum(1).clamp(min=1)
