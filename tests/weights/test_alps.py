"""ALPS: a support of the pattern that loses little, and on it the conditions of a least loss."""

from __future__ import annotations

import itertools

import pytest
import torch

from fxcompress.weights import alps, blocked, compensation
from fxcompress.weights.pattern import NM, Pattern, Unstructured
from tests.weights.problems import damped, loss, none_zero, problem, random_mask

PATTERNS = [Unstructured(0.5), Unstructured(0.7, per="matrix"), NM(2, 4), NM(4, 8)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_support_is_of_the_pattern(pattern: Pattern):
    weight = problem(8, 32)[0]
    mask = alps.support(weight, damped(32), pattern, none_zero(weight))
    if isinstance(pattern, NM):
        assert (mask.view(8, -1, pattern.of).sum(-1) == pattern.keep).all()
    elif pattern.per == "row":
        assert (mask.sum(1) == 16).all()
    else:
        assert int((~mask).sum()) == round(0.7 * 8 * 32)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_support_loses_less_than_that_of_single_scores(pattern: Pattern):
    """No law, but what the search is for: over ten problems together."""
    found = dense = 0.0
    for seed in range(10):
        weight, D = problem(8, 32, seed)[0], damped(32, seed)
        for mask, name in (
            (alps.support(weight, D, pattern, none_zero(weight)), "found"),
            (blocked.at_once(weight, D, pattern, none_zero(weight)), "dense"),
        ):
            lost = float(loss(weight, compensation.exact(weight, mask, D), D.matrix).sum())
            found, dense = (found + lost, dense) if name == "found" else (found, dense + lost)
    assert found < dense


def test_gradient_on_the_support_is_zero():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    found = alps.conjugate_gradient(weight, mask, D, iterations=200, tolerance=1e-12)
    gradient = (found - weight) @ D.matrix
    assert gradient[mask].abs().max() < 1e-8 * (weight @ D.matrix).abs().max()
    assert torch.count_nonzero(found[~mask]) == 0


def test_conjugate_gradients_end_at_the_closed_form():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    found = alps.conjugate_gradient(weight, mask, D, iterations=500, tolerance=1e-13)
    torch.testing.assert_close(found, compensation.exact(weight, mask, D))


def test_every_step_loses_less():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    losses = [loss(weight, alps.conjugate_gradient(weight, mask, D, iterations=k), D.matrix) for k in range(12)]
    torch.testing.assert_close(losses[0], loss(weight, compensation.none(weight, mask), D.matrix))
    assert all((after <= before * (1 + 1e-9)).all() for before, after in itertools.pairwise(losses))


def test_nothing_moves_from_the_least_loss():
    weight, D, mask = problem(4, 16)[0], damped(16), random_mask(4, 16)
    least = compensation.exact(weight, mask, D)
    torch.testing.assert_close(alps.conjugate_gradient(weight, mask, D, start=least), least)


def test_zeros_stay_zero():
    weight = problem(6, 32)[0]
    weight[:, ::5] = 0
    mask = alps.support(weight, damped(32), NM(2, 4), weight == 0)
    assert not mask[weight == 0].any()
    assert (mask.view(6, 8, 4).sum(-1) == 2).all()
