"""How often the token that a model finds most likely is right, and how often it is the whole model's.

    accuracy  = mean over tokens t of  [argmax p(. | x_<t) = x_t]
    agreement = mean over tokens t of  [argmax p(. | x_<t) = argmax p_parent(. | x_<t)]

The two figures that rank the candidates of MiniPuzzle (Nemotron-H, arXiv 2504.03624, section on compression), and the
zero-shot loss, which the same logits have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.logits import follows, logits_of
from fxcompress.searching.variant import Variant


@dataclass(frozen=True)
class Accuracy:
    """Parts of the tokens that follow another one, in [0, 1], and the loss at them in nats a token."""

    accuracy: float
    agreement: float
    loss: float

    @property
    def mean(self) -> float:
        """What candidates are ranked by."""
        return (self.accuracy + self.agreement) / 2


@torch.no_grad()
def greedy(program: Program, batches: Sequence[Batch]) -> list[Tensor]:
    """The most likely next token at every place but the last, (batch, length - 1) for each batch.

    Raises CompressError for batches that are not of token ids, or do not fit, and for a model without logits.
    """
    return [logits_of(program, batch)[:, :-1].argmax(-1) for batch in batches]


@torch.no_grad()
def accuracy(
    program: Program | Variant,
    batches: Sequence[Batch],
    parent: Sequence[Tensor],
    advance: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Of a program on batches of token ids (batch, length). ``parent``: what ``greedy`` says of the whole model.

    Padding neither predicts nor is predicted. ``advance`` is called after each batch.
    """
    right = same = count = 0
    loss = 0.0
    for batch, expected in zip(batches, parent, strict=True):
        logits = logits_of(program, batch)
        counts = follows(batch).to(logits.device)
        logits, next_ids = logits[:, :-1][counts], batch["input_ids"][:, 1:].to(logits.device)[counts]
        found = logits.argmax(-1)
        right += int((found == next_ids).sum())
        same += int((found == expected[counts]).sum())
        loss += float(F.cross_entropy(logits.float(), next_ids, reduction="sum"))
        count += len(next_ids)
        advance()
    if not count:
        raise CompressError("the calibration has no token that follows another one: use longer samples")
    return Accuracy(right / count, same / count, loss / count)
