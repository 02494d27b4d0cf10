"""What distillation minimises, each part a mean over the tokens that count.

    L = D + w_ce CE + w_is L_is

D is the divergence of the student's next token from the teacher's, CE the cross-entropy of the text itself, L_is how
far intermediate states are apart. A weight is a number, or "dynamic": the detached ratio of D to that part, so that
both are equally large, anew in each batch (Minitron, arXiv 2407.14679, for L_is). D alone is what the paper
ends with.

With a temperature T both distributions are softmax(logits / T), and D is taken T^2 times, so that its gradient, and its
weight beside CE, stays what it is (Hinton et al., arXiv 1503.02531, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from fxcompress.bounded import quoted
from fxcompress.distillation.losses import DIVERGENCES, Divergence, Top, top_kl, top_of
from fxcompress.errors import CompressError

Weight: TypeAlias = "float | Literal['dynamic']"


@dataclass(frozen=True)
class Objective:
    """divergence: forward_kl, reverse_kl or jsd. top_k: forward KL over the teacher's k most likely tokens and the
    rest together. ce, states: weights. pairs: places (student, teacher) whose states correspond, by what the passes
    removed if there are none; see ``states.py``. Raises CompressError for values that make no loss."""

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    top_k: int | None = None
    ce: Weight = 0.0
    states: Weight = 0.0
    pairs: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise CompressError(f"there is no divergence {quoted(self.divergence)}; there are {', '.join(DIVERGENCES)}")
        if not 0 < self.temperature < float("inf"):
            raise CompressError(f"temperature={self.temperature} is not a positive number")
        if self.top_k is not None and (self.top_k < 1 or self.divergence != "forward_kl"):
            raise CompressError("top_k is a number of tokens from 1 on, and goes with forward_kl alone")
        for name in ("ce", "states"):
            weight = getattr(self, name)
            if weight != "dynamic" and not (isinstance(weight, int | float) and 0 <= weight < float("inf")):
                raise CompressError(f"{name}={quoted(weight)} is neither a weight from 0 on nor 'dynamic'")

        if self.pairs is not None and not (self.states and self.pairs):
            raise CompressError("pairs are of intermediate states: give states a weight, and at least one pair")

    def distance(self, student: Tensor, teacher: Tensor | Top) -> Tensor:
        """D at every position, of logits (positions, vocabulary) from the teacher's, or from what was kept of them."""
        if isinstance(teacher, Tensor):
            teacher = teacher / self.temperature
            teacher = teacher if self.top_k is None else top_of(teacher, self.top_k)
        student = student / self.temperature
        if isinstance(teacher, Top):
            found = top_kl(student, teacher)
        else:
            found = DIVERGENCES[self.divergence](student, teacher)
        return found * self.temperature**2

    def total(self, divergence: Tensor, ce: Tensor, states: Tensor | None = None) -> Tensor:
        """L of its parts."""
        loss = divergence
        for part, weight in ((ce, self.ce), (states, self.states)):
            if part is not None and weight:
                loss = loss + _weight(weight, divergence, part) * part
        return loss


def _weight(weight: Weight, divergence: Tensor, part: Tensor) -> Tensor | float:
    if weight != "dynamic":
        return weight
    return (divergence / part.clamp(min=1e-12)).detach()  # without a position, or where states are equal, both are 0
