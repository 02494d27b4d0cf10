"""Zero-shot loss: how well a cut model predicts the next token before any training, in nats for each token.

    loss = mean over tokens t of  -log p(x_t | x_<t)

It ranks candidates of about one size; after training the order may be another, so that the best few are worth a short
distillation (Minitron-SSM, arXiv 2504.11409, section 3; Minitron, arXiv 2407.14679, section on search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.program import Program


@torch.no_grad()
def zero_shot_loss(program: Program, batches: Sequence[Batch], advance: Callable[[], None] = lambda: None) -> float:
    """Mean cross-entropy over all tokens that follow another one; padding neither predicts nor is predicted.

    batches: token ids (batch, length), with an attention mask of that shape where there is padding. ``advance`` is
    called after each. The loss of a broken model may be NaN. Raises CompressError for batches that cannot be scored.
    """
    total, count = 0.0, 0
    for batch in batches:
        ids = batch.get("input_ids")
        if ids is None:
            raise CompressError("the calibration has no input_ids: candidates are ranked by how they predict tokens")
        follows = _follows(ids, batch.get("attention_mask"))
        logits = _logits(program, batch)[:, :-1][follows]  # (tokens, vocabulary)
        total += float(F.cross_entropy(logits.float(), ids[:, 1:][follows], reduction="sum"))
        count += int(follows.sum())
        advance()
    if not count:
        raise CompressError("the calibration has no token that follows another one: use longer samples")
    return total / count


def _follows(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens from the second on are real and follow a real one, (batch, length - 1)."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return real[:, 1:] & real[:, :-1]


def _logits(program: Program, batch: Batch) -> Tensor:
    try:
        out: Any = program(**batch)
    except IndexError as error:
        raise CompressError("the calibration has token ids without an embedding") from error
    except TypeError as error:  # inputs of other names
        raise CompressError(f"the calibration does not fit the model: {error}") from error
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise CompressError(f"{program.origin.model_class.__name__} gives no logits (batch, length, vocabulary)")
    return logits
