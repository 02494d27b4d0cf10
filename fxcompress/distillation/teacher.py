"""A teacher that runs beside its student: without gradients, and its logits a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fxcompress.distillation.halves import halves_of
from fxcompress.distillation.losses import Top


class Teacher(Protocol):
    """What is said of every position of a batch, in two steps, so that logits exist for some positions only."""

    vocabulary: int

    def targets(self, inputs: Mapping[str, Tensor], rows: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Something small for each position that counts, (positions, ...).

        inputs: of a model; rows: the places of the batch's rows in the data; counts: (batch, length - 1).
        """
        ...

    def said(self, *targets: Tensor) -> Tensor | Top:
        """Logits (positions, vocabulary) of some positions' targets, or the most likely tokens of them."""
        ...


class Online:
    """A model as a teacher; it is run in eval mode."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model = model.eval()
        self.halves = halves_of(model, ids)
        with torch.no_grad():
            self.vocabulary = self.halves.tail(self.halves.body(input_ids=ids)[0]).shape[-1]

    @torch.no_grad()
    def targets(self, inputs: Mapping[str, Tensor], rows: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        return (self.halves.body(**inputs)[:, :-1][counts],)

    @torch.no_grad()
    def said(self, *targets: Tensor) -> Tensor:
        return self.halves.tail(*targets)
