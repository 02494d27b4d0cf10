"""Zero-shot loss: how well a cut model predicts the next token before any training, in nats for each token.

    loss = mean over tokens t of  -log p(x_t | x_<t)

It ranks candidates of about one size; after training the order may be another, so that the best few are worth a short
distillation (Minitron-SSM, arXiv 2504.11409, section 3; Minitron, arXiv 2407.14679, section on search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.logits import follows, logits_of


@torch.no_grad()
def zero_shot_loss(program: Program, batches: Sequence[Batch], advance: Callable[[], None] = lambda: None) -> float:
    """Mean cross-entropy over all tokens that follow another one; padding neither predicts nor is predicted.

    batches: token ids (batch, length), with an attention mask of that shape where there is padding. ``advance`` is
    called after each. The loss of a broken model may be NaN. Raises CompressError for batches that cannot be scored.
    """
    total, count = 0.0, 0
    for batch in batches:
        logits = logits_of(program, batch)
        counts = follows(batch).to(logits.device)
        logits = logits[:, :-1][counts]  # (tokens, vocabulary)
        next_ids = batch["input_ids"][:, 1:].to(logits.device)[counts]
        total += float(F.cross_entropy(logits.float(), next_ids, reduction="sum"))
        count += len(next_ids)
        advance()
    if not count:
        raise CompressError("the calibration has no token that follows another one: use longer samples")
    return total / count
