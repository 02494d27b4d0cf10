"""How far a student's next token is from its teacher's, position by position, in nats.

    forward KL    sum_v p (log p - log q)              p: the teacher's, q: the student's probabilities
    reverse KL    sum_v q (log q - log p)
    JSD           (KL(p | m) + KL(q | m)) / 2           m = (p + q) / 2; symmetric, at most log 2
    top-k         forward KL where all but the teacher's k most likely tokens count as one

Sums over the vocabulary; the mean over positions is the caller's. Minitron (arXiv 2407.14679) finds forward
KL alone at temperature 1 the best of them. All are computed in float32 at the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher | student) of logits (positions, vocabulary), (positions,)."""
    return _kl(log_probs(teacher), log_probs(student))


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student | teacher) of logits (positions, vocabulary), (positions,)."""
    return _kl(log_probs(student), log_probs(teacher))


def jsd(student: Tensor, teacher: Tensor) -> Tensor:
    """Jensen-Shannon divergence of logits (positions, vocabulary), (positions,)."""
    log_q, log_p = log_probs(student), log_probs(teacher)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}


@dataclass(frozen=True)
class Top:
    """What a teacher finds likely: ``ids`` (positions, k), the most likely first, and ``log_probs`` (positions, k + 1).

    The last column is the log of what all other tokens have together, so that nothing of the distribution is lost or
    made up: the divergence is between two distributions over k + 1 outcomes, and at most that over the vocabulary.
    """

    ids: Tensor
    log_probs: Tensor

    def first(self, k: int) -> Top:
        """The same for fewer tokens; what the others have goes to the rest."""
        rest = self.log_probs[:, k:].logsumexp(-1, keepdim=True)
        return Top(self.ids[:, :k], torch.cat([self.log_probs[:, :k], rest], -1))


def top_of(logits: Tensor, k: int) -> Top:
    """The k most likely tokens of logits (positions, vocabulary)."""
    ids = logits.topk(k, dim=-1).indices
    return Top(ids, at_top(logits, ids))


def at_top(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of chosen tokens and of all others together, (positions, k + 1)."""
    logits = wide(logits)
    total = logits.logsumexp(-1, keepdim=True)
    # 1 - sum p would cancel: the others are added up themselves
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return _finite(torch.cat([logits.gather(-1, ids), others], -1) - total)


def top_kl(student: Tensor, top: Top) -> Tensor:
    """KL(teacher | student) over the teacher's most likely tokens and the rest, (positions,)."""
    return _kl(top.log_probs.to(wide(student).dtype), at_top(student, top.ids))


def cross_entropy(student: Tensor, next_ids: Tensor) -> Tensor:
    """-log q(next token), (positions,)."""
    return F.cross_entropy(wide(student), next_ids, reduction="none")


def log_probs(logits: Tensor) -> Tensor:
    return _finite(F.log_softmax(wide(logits), dim=-1))


def wide(x: Tensor) -> Tensor:
    """In float32 where it is narrower: in bfloat16, sums over a vocabulary lose three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(log_p: Tensor) -> Tensor:
    """So that 0 log 0 is 0: a class may rule tokens out by -inf."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min / 2)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
