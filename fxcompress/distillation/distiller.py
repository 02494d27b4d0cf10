"""The student with its loss, as one module: what ``Trainer`` trains. It has no parameter of the teacher's.

    hidden states of student and teacher ──▶ positions that count ──▶ chunk after chunk: logits of both ──▶ sums

A position counts if the token after it is real text; the sums are divided by the number of those in the whole step, so
that batches split into any number of pieces give the same gradient.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from fxcompress.distillation.chunks import chunked
from fxcompress.distillation.halves import Halves
from fxcompress.distillation.losses import cross_entropy
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.rows import IGNORED
from fxcompress.distillation.states import States, recorded
from fxcompress.distillation.teacher import Online, Teacher

CHUNK = 1024  # positions; of 131,072 ids their logits take 0.5 GB in float32


class Distiller(nn.Module):
    """``forward`` of a batch of rows gives its loss; without a teacher the loss is the cross-entropy of the text."""

    accepts_loss_kwargs = True  # Trainer: the loss is divided by the tokens of the whole step already

    def __init__(
        self,
        student: nn.Module,
        halves: Halves,
        teacher: Teacher | None,
        objective: Objective,
        chunk: int = CHUNK,
        states: States | None = None,
    ) -> None:
        super().__init__()
        self.student, self.states = student, states
        self.halves, self.objective, self.chunk = halves, objective, chunk
        self.teacher = teacher  # no nn.Module, so that what it has is not trained
        self.positions = 0  # that have been trained on

    def forward(
        self, labels: Tensor, row: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """labels: the ids (batch, length), ``IGNORED`` where a token is not predicted; row: see ``Teacher.targets``."""
        counts = labels[:, 1:] != IGNORED
        targets: tuple[Tensor, ...] = ()
        with self._recorded(1) as theirs:
            if self.teacher is not None:
                targets = self.teacher.targets(inputs, row, counts)
        with self._recorded(0) as ours:
            hidden = self.halves.body(**inputs)[:, :-1][counts]
        apart = None if self.states is None else self.states(ours, theirs, counts)
        next_ids = labels[:, 1:][counts]
        sums = chunked(self._sums, self.chunk, hidden, next_ids, *targets)
        self.positions += len(next_ids)
        count = len(next_ids) if num_items_in_batch is None else num_items_in_batch
        return {"loss": self._loss(sums[0], sums[1], apart) / max(count, 1)}

    def _sums(self, hidden: Tensor, next_ids: Tensor, *targets: Tensor) -> Tensor:
        """Divergence and cross-entropy, each summed over some positions, (2,)."""
        logits = self.halves.tail(hidden)
        nothing = torch.zeros((), device=logits.device)
        ce = cross_entropy(logits, next_ids).sum() if self.teacher is None or self.objective.ce else nothing
        if self.teacher is None:
            return torch.stack([nothing.to(ce.dtype), ce])
        divergence = self.objective.distance(logits, self.teacher.said(*targets)).sum()
        return torch.stack([divergence, ce.to(divergence.dtype)])

    def _loss(self, divergence: Tensor, ce: Tensor, apart: Tensor | None) -> Tensor:
        return ce if self.teacher is None else self.objective.total(divergence, ce, apart)

    def _recorded(self, of: int) -> contextlib.AbstractContextManager[dict[int, Tensor]]:
        """States of the student (0) or the teacher (1), as far as they are wanted."""
        if self.states is None:
            return contextlib.nullcontext({})
        assert isinstance(self.teacher, Online)
        return recorded((self.student, self.teacher.model)[of], self.states.places(of))
