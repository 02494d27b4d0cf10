"""A sum over chunks is the sum over all, its gradient too, and no tensor of all logits is made on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fxcompress.distillation.chunks import chunked
from fxcompress.distillation.losses import forward_kl

POSITIONS, WIDTH, VOCABULARY = 13, 6, 17
generator = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(POSITIONS, WIDTH, generator=generator, dtype=torch.float64)
HEAD = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
TEACHER = torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)


def loss_and_gradients(size: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The loss, the gradients of hidden states and head, and how many positions each call saw."""
    hidden, head, seen = HIDDEN.clone().requires_grad_(), HEAD.clone().requires_grad_(), []

    def function(h: Tensor, teacher: Tensor) -> Tensor:
        seen.append(len(h))
        return forward_kl(h @ head.T, teacher).sum()

    loss = chunked(function, size, hidden, TEACHER)
    loss.backward()
    return loss.detach(), hidden.grad, head.grad, seen


@pytest.mark.parametrize("size", [1, 4, 12])
def test_chunked_is_unchunked(size):
    whole, chunks = loss_and_gradients(POSITIONS), loss_and_gradients(size)
    for a, b in zip(whole[:3], chunks[:3], strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def test_no_call_sees_more_positions_than_a_chunk_and_each_runs_twice():
    seen = loss_and_gradients(4)[3]
    assert sorted(seen) == sorted([4, 4, 4, 1] * 2)


def test_nothing_as_large_as_a_chunk_of_logits_is_kept_for_backward():
    kept: list[Tensor] = []
    hidden, head = HIDDEN.clone().requires_grad_(), HEAD.clone().requires_grad_()
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        chunked(lambda h, t: forward_kl(h @ head.T, t).sum(), 4, hidden, TEACHER)
    assert not [t for t in kept if t.dim() == 2 and t.shape[-1] == VOCABULARY and t.requires_grad]


def test_without_recomputation_logits_would_be_kept():
    """The test above can fail."""
    kept: list[Tensor] = []
    head = HEAD.clone().requires_grad_()
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        forward_kl(HIDDEN @ head.T, TEACHER).sum()
    assert [t for t in kept if t.dim() == 2 and t.shape[-1] == VOCABULARY and t.requires_grad]


def test_without_gradients_nothing_runs_twice():
    seen = []
    with torch.no_grad():
        chunked(lambda h: seen.append(len(h)) or h.sum(), 5, HIDDEN)
    assert seen == [5, 5, 3]


def test_without_positions_the_sum_is_zero_and_has_a_gradient():
    hidden = HIDDEN.clone().requires_grad_()
    loss = chunked(lambda h: h.sum(), 4, hidden[:0])
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.equal(torch.zeros_like(HIDDEN))
