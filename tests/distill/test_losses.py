"""Each divergence is what its formula says, in float64 and without a library; faults are seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxcompress.distillation import losses
from fxcompress.distillation.losses import DIVERGENCES, at_top, cross_entropy, forward_kl, jsd, top_kl, top_of


def logits(seed: int, positions: int = 5, vocabulary: int = 11, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)


STUDENT, TEACHER = logits(0), logits(1)


def softmax(row: Tensor) -> list[float]:
    weights = [math.exp(x) for x in row.tolist()]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def middle(p: list[float], q: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(p, q, strict=True)]


FORMULAS = {
    "forward_kl": lambda p, q: kl(p, q),
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: (kl(p, middle(p, q)) + kl(q, middle(p, q))) / 2,
}


def by_formula(name: str) -> list[float]:
    """Of the teacher's probabilities p and the student's q, position by position."""
    rows = zip(map(softmax, TEACHER), map(softmax, STUDENT), strict=True)
    return [FORMULAS[name](p, q) for p, q in rows]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_its_formula(name):
    assert DIVERGENCES[name](STUDENT, TEACHER).tolist() == pytest.approx(by_formula(name), rel=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_in_float32_it_is_the_same_to_six_digits(name):
    narrow = DIVERGENCES[name](STUDENT.float(), TEACHER.float())
    assert narrow.dtype == torch.float32
    assert narrow.tolist() == pytest.approx(by_formula(name), rel=1e-5)


def test_bfloat16_is_widened_before_the_sum():
    wide = forward_kl(STUDENT.bfloat16().double(), TEACHER.bfloat16().double())
    assert forward_kl(STUDENT.bfloat16(), TEACHER.bfloat16()).tolist() == pytest.approx(wide.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_of_equal_logits_it_is_zero_and_so_is_its_gradient(name):
    student = TEACHER.clone().requires_grad_()
    value = DIVERGENCES[name](student, TEACHER).sum()
    value.backward()
    assert abs(value.item()) < 1e-14
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("name", DIVERGENCES)
def test_its_gradient_is_that_of_finite_differences(name):
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: DIVERGENCES[name](s, TEACHER), student)


def test_the_gradient_of_forward_kl_is_the_difference_of_the_probabilities():
    student = STUDENT.clone().requires_grad_()
    forward_kl(student, TEACHER).sum().backward()
    assert torch.allclose(student.grad, STUDENT.softmax(-1) - TEACHER.softmax(-1), atol=1e-14)


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_tokens_that_are_ruled_out_count_nothing_and_give_no_nan(name):
    ruled = torch.tensor([[-torch.inf, 0.0, 1.0]], dtype=torch.float64)
    student = torch.tensor([[-torch.inf, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    value = DIVERGENCES[name](student, ruled)
    value.sum().backward()
    assert value.tolist() == pytest.approx(DIVERGENCES[name](student[:, 1:], ruled[:, 1:]).tolist())
    assert student.grad.isfinite().all()


def test_swapped_arguments_are_seen():
    """The planted fault: what some libraries call forward KL."""
    swapped = forward_kl(TEACHER, STUDENT)
    assert swapped.tolist() != pytest.approx(by_formula("forward_kl"), rel=1e-3)
    assert swapped.tolist() == pytest.approx(by_formula("reverse_kl"), rel=1e-12)


def test_jsd_is_symmetric_and_at_most_log_two():
    assert jsd(STUDENT, TEACHER).tolist() == pytest.approx(jsd(TEACHER, STUDENT).tolist())
    apart = jsd(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))
    assert apart.item() == pytest.approx(math.log(2))


# Top-k


def top_kl_by_formula(p: list[float], q: list[float], k: int) -> float:
    kept = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    p_left, q_left = ([x[i] for i in kept] + [1 - sum(x[i] for i in kept)] for x in (p, q))
    return kl(p_left, q_left)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_top_k_is_the_divergence_of_its_tokens_and_of_the_rest_together(k):
    rows = zip(map(softmax, TEACHER), map(softmax, STUDENT), strict=True)
    assert top_kl(STUDENT, top_of(TEACHER, k)).tolist() == pytest.approx(
        [top_kl_by_formula(p, q, k) for p, q in rows], rel=1e-9
    )


def test_with_all_tokens_top_k_is_forward_kl():
    assert top_kl(STUDENT, top_of(TEACHER, 11)).tolist() == pytest.approx(by_formula("forward_kl"), rel=1e-12)


def test_the_rest_keeps_its_mass_where_it_is_tiny():
    """1 - sum p has no digit of it left in float32."""
    sharp = torch.tensor([[40.0, 0.0, -1.0]])
    rest = top_of(sharp, 1).log_probs[0, 1].item()
    assert rest == pytest.approx(math.log(math.exp(-40) + math.exp(-41)), rel=1e-6)


def test_more_tokens_say_more():
    values = [top_kl(STUDENT, top_of(TEACHER, k)).sum().item() for k in range(1, 12)]
    assert values == sorted(values)


def test_fewer_tokens_of_a_stored_top_are_those_of_the_logits():
    fewer, direct = top_of(TEACHER, 8).first(3), top_of(TEACHER, 3)
    assert fewer.ids.equal(direct.ids)
    assert torch.allclose(fewer.log_probs, direct.log_probs, atol=1e-14)


def test_dropping_the_rest_would_not_be_a_divergence():
    """The planted fault: without the rest the sum may fall below zero, and the student gains by leaving mass there."""
    top = top_of(TEACHER, 2)
    ours = at_top(top.log_probs.new_zeros(5, 11).scatter(-1, top.ids, 9.0), top.ids)
    dropped = (top.log_probs[:, :2].exp() * (top.log_probs - ours)[:, :2]).sum(-1)
    assert (dropped < 0).any()


def test_cross_entropy_is_the_log_probability_of_the_next_token():
    ids = torch.tensor([0, 3, 10, 3, 7])
    direct = [-math.log(softmax(row)[i]) for row, i in zip(STUDENT, ids.tolist(), strict=True)]
    assert cross_entropy(STUDENT, ids).tolist() == pytest.approx(direct, rel=1e-12)
    assert losses.cross_entropy(STUDENT.bfloat16(), ids).dtype == torch.float32
