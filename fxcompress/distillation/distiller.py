"""The student with its loss, as one module: what ``Trainer`` trains. Its parameters are the student's and no others.

    hidden states of student and teacher ──▶ positions that count ──▶ chunk after chunk: logits of both ──▶ sums

A position counts if the token after it is real text; the sums are divided by the number of those in the whole step, so
that batches split into any number of pieces give the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.distillation.chunks import chunked
from fxcompress.distillation.halves import Halves
from fxcompress.distillation.losses import cross_entropy
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.rows import IGNORED
from fxcompress.distillation.teacher import Teacher

CHUNK = 1024  # positions; of 131,072 ids their logits take 0.5 GB in float32


class Distiller(nn.Module):
    """``forward`` of a batch of rows gives its loss; without a teacher the loss is the cross-entropy of the text."""

    accepts_loss_kwargs = True  # Trainer: the loss is divided by the tokens of the whole step already

    def __init__(
        self, student: nn.Module, halves: Halves, teacher: Teacher | None, objective: Objective, chunk: int = CHUNK
    ) -> None:
        super().__init__()
        self.student = student
        self.halves, self.objective, self.chunk = halves, objective, chunk
        self.teacher = teacher  # no nn.Module, so that what it has is not trained
        self.positions = 0  # that have been trained on

    def forward(
        self, labels: Tensor, row: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """labels: the ids (batch, length), ``IGNORED`` where a token is not predicted; row: see ``Teacher.targets``."""
        counts = labels[:, 1:] != IGNORED
        targets = () if self.teacher is None else self.teacher.targets(inputs, row, counts)
        hidden = self.halves.body(**inputs)[:, :-1][counts]
        next_ids = labels[:, 1:][counts]
        sums = chunked(self._sums, self.chunk, hidden, next_ids, *targets)
        self.positions += len(next_ids)
        count = len(next_ids) if num_items_in_batch is None else num_items_in_batch
        return {"loss": self._loss(*sums.unbind()) / max(count, 1)}

    def _sums(self, hidden: Tensor, next_ids: Tensor, *targets: Tensor) -> Tensor:
        """Divergence and cross-entropy, each summed over some positions, (2,)."""
        logits = self.halves.tail(hidden)
        nothing = torch.zeros((), device=logits.device)
        ce = cross_entropy(logits, next_ids).sum() if self.teacher is None or self.objective.ce else nothing
        if self.teacher is None:
            return torch.stack([nothing.to(ce.dtype), ce])
        divergence = self.objective.distance(logits, self.teacher.said(*targets)).sum()
        return torch.stack([divergence, ce.to(divergence.dtype)])

    def _loss(self, divergence: Tensor, ce: Tensor) -> Tensor:
        return ce if self.teacher is None else self.objective.total(divergence, ce)
