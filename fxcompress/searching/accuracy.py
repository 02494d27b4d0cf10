"""How often the token that a model finds most likely is right, and how often it is the whole model's.

    accuracy  = mean over tokens t of  [argmax p(. | x_<t) = x_t]
    agreement = mean over tokens t of  [argmax p(. | x_<t) = argmax p_parent(. | x_<t)]

The two figures that rank the candidates of MiniPuzzle (Nemotron-H, arXiv 2504.03624, section on compression).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.batches import Batch
from fxcompress.bounded import one_line
from fxcompress.errors import CompressError
from fxcompress.observe import mask_of
from fxcompress.program import Program


@dataclass(frozen=True)
class Accuracy:
    """Parts of the tokens that follow another one, in [0, 1]."""

    accuracy: float
    agreement: float

    @property
    def mean(self) -> float:
        """What candidates are ranked by."""
        return (self.accuracy + self.agreement) / 2


@torch.no_grad()
def greedy(program: Program, batches: Sequence[Batch]) -> list[Tensor]:
    """The most likely next token at every place but the last, (batch, length - 1) for each batch.

    Raises CompressError for batches that are not of token ids, or do not fit, and for a model without logits.
    """
    return [_most_likely(program, batch) for batch in batches]


def accuracy(
    program: Program, batches: Sequence[Batch], parent: Sequence[Tensor], advance: Callable[[], None] = lambda: None
) -> Accuracy:
    """Of a program on batches of token ids (batch, length). ``parent``: what ``greedy`` says of the whole model.

    Padding neither predicts nor is predicted. ``advance`` is called after each batch.
    """
    right = same = count = 0
    for batch, expected in zip(batches, parent, strict=True):
        found, follows = _most_likely(program, batch), _follows(batch)
        next_ids = batch["input_ids"][:, 1:].to(found.device)
        right += int((found == next_ids)[follows].sum())
        same += int((found == expected)[follows].sum())
        count += int(follows.sum())
        advance()
    if not count:
        raise CompressError("the batches have no token that follows another one: use longer samples")
    return Accuracy(right / count, same / count)


def _follows(batch: Batch) -> Tensor:
    """Which tokens from the second on are real and follow a real one, (batch, length - 1)."""
    mask = mask_of(batch)
    assert mask is not None
    return mask[:, 1:] & mask[:, :-1]


@torch.no_grad()
def _most_likely(program: Program, batch: Batch) -> Tensor:
    if batch.get("input_ids") is None:
        raise CompressError("a batch has no input_ids: candidates are ranked by how they predict tokens")
    try:
        logits = program.run(*program.bind(**{name: value.to(program.device) for name, value in batch.items()}))[0]
    except IndexError as error:
        raise CompressError("the batches have token ids without an embedding") from error
    except TypeError as error:  # inputs of other names
        raise CompressError(f"the batches do not fit the model: {one_line(error)}") from error
    if logits.dim() != 3:
        raise CompressError(f"{program.origin.model_class.__name__} gives no logits (batch, length, vocabulary)")
    return logits[:, :-1].argmax(-1)
