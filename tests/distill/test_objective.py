"""The loss of a batch is its parts at the positions that count, weighted as asked."""

from __future__ import annotations

import math

import pytest
import torch

from fxcompress import CompressError, Objective
from fxcompress.distillation.losses import forward_kl, reverse_kl, top_kl, top_of

generator = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)
D, CE, STATES = (torch.tensor(x, requires_grad=True) for x in (2.0, 8.0, 0.5))


def test_the_default_is_forward_kl_at_temperature_one_and_nothing_else():
    objective = Objective()
    assert objective.distance(STUDENT, TEACHER).equal(forward_kl(STUDENT, TEACHER))
    assert objective.total(D, CE, STATES).item() == 2.0


def test_another_divergence_is_taken_by_its_name():
    assert Objective("reverse_kl").distance(STUDENT, TEACHER).equal(reverse_kl(STUDENT, TEACHER))


def test_top_k_is_cut_from_the_teacher_at_hand():
    assert Objective(top_k=3).distance(STUDENT, TEACHER).equal(top_kl(STUDENT, top_of(TEACHER, 3)))


@pytest.mark.parametrize("top_k", [None, 3])
def test_temperature_softens_both_and_is_squared_out_again(top_k):
    soft = Objective(temperature=2.0, top_k=top_k).distance(STUDENT, TEACHER)
    assert torch.allclose(soft, 4 * Objective(top_k=top_k).distance(STUDENT / 2, TEACHER / 2))


def test_at_a_high_temperature_the_gradient_does_not_vanish():
    """By T^2 it tends to the difference of centred logits over the size of the vocabulary (arXiv 1503.02531)."""
    student = STUDENT.clone().requires_grad_()
    Objective(temperature=1e4).distance(student, TEACHER).sum().backward()
    centred = [x - x.mean(-1, keepdim=True) for x in (STUDENT, TEACHER)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / 11, rtol=1e-3, atol=1e-6)


def test_weights_multiply_their_parts():
    assert Objective(ce=0.5, states=2.0).total(D, CE, STATES).item() == 2.0 + 4.0 + 1.0


def test_a_dynamic_weight_makes_a_part_as_large_as_the_divergence():
    assert Objective(ce="dynamic", states="dynamic").total(D, CE, STATES).item() == pytest.approx(6.0)


def test_a_dynamic_weight_has_no_gradient_of_its_own():
    (by_d, by_ce) = torch.autograd.grad(Objective(ce="dynamic").total(D, CE), (D, CE))
    assert by_d.item() == 1.0
    assert by_ce.item() == pytest.approx(2.0 / 8.0)


def test_a_part_that_is_zero_has_a_finite_weight():
    assert math.isfinite(Objective(states="dynamic").total(D, CE, torch.tensor(0.0)).item())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"divergence": "kl"}, "there is no divergence 'kl'; there are forward_kl, reverse_kl, jsd"),
        ({"temperature": 0.0}, "temperature=0.0 is not a positive number"),
        ({"temperature": float("nan")}, "temperature=nan is not a positive number"),
        ({"top_k": 0}, "top_k is a number of tokens from 1 on"),
        ({"top_k": 5, "divergence": "jsd"}, "goes with forward_kl alone"),
        ({"ce": -1.0}, "ce=-1.0 is neither a weight from 0 on nor 'dynamic'"),
        ({"states": "much"}, "states='much' is neither"),
    ],
)
def test_what_makes_no_loss_is_refused(options, said):
    with pytest.raises(CompressError, match=said.replace("(", r"\(")):
        Objective(**options)
