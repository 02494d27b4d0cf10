"""How well a model predicts held-out text, and how close it is to its teacher there: before training, and after.

loss         mean of -log q(next token), in nats a token; perplexity is its exponential
kl           mean of KL(teacher | model), temperature 1
agreement    the part of tokens for which both find the same one most likely
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fxcompress.distillation.chunks import chunked
from fxcompress.distillation.halves import Halves
from fxcompress.distillation.losses import cross_entropy, forward_kl
from fxcompress.distillation.rows import IGNORED, Rows
from fxcompress.distillation.teacher import Teacher
from fxcompress.progress import Progress, silent


@dataclass(frozen=True)
class Scores:
    """Means over ``tokens`` predicted tokens; of a teacher only where one runs."""

    tokens: int
    loss: float
    kl: float | None = None
    agreement: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"perplexity": self.perplexity}


@dataclass(frozen=True)
class Held:
    """Held-out rows, and how they are run through a model."""

    rows: Rows
    batch_size: int
    chunk: int
    device: torch.device
    computes_in: torch.dtype
    progress: Progress = silent

    @torch.no_grad()
    def scores(self, halves: Halves, teacher: Teacher | None, what: str) -> Scores:
        """Of a model in eval mode, by its halves. ``teacher``: one that gives logits."""
        sums, tokens = torch.zeros(3, dtype=torch.float64), 0
        with self.progress(what, math.ceil(len(self.rows) / self.batch_size)) as advance:
            for batch in self.rows.batches(self.batch_size):
                batch = {name: value.to(self.device) for name, value in batch.items()}
                labels, row = batch.pop("labels")[:, 1:], batch.pop("row")
                counts = labels != IGNORED
                with torch.autocast(self.device.type, self.computes_in, self.computes_in == torch.bfloat16):
                    targets = () if teacher is None else teacher.targets(batch, row, counts)
                    hidden = halves.body(**batch)[:, :-1][counts]
                    found = chunked(_sums(halves, teacher), self.chunk, hidden, labels[counts], *targets)
                sums, tokens = sums + found.double().cpu(), tokens + int(counts.sum())
                advance()
        loss, kl, agreement = (float(x) / max(tokens, 1) for x in sums)
        return Scores(tokens, loss) if teacher is None else Scores(tokens, loss, kl, agreement)


def _sums(halves: Halves, teacher: Teacher | None) -> Any:
    def sums(hidden: Tensor, next_ids: Tensor, *targets: Tensor) -> Tensor:
        logits = halves.tail(hidden)
        ce = cross_entropy(logits, next_ids).sum()
        if teacher is None:
            return torch.stack([ce, ce * 0, ce * 0])
        theirs = teacher.said(*targets)
        assert isinstance(theirs, Tensor)
        same = (logits.argmax(-1) == theirs.argmax(-1)).sum()
        return torch.stack([ce, forward_kl(logits, theirs).sum(), same.to(ce.dtype)])

    return sums
