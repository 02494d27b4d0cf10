"""The closed form: least loss for a fixed mask, whatever the rows' counts and the memory, and exact zeros."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import CompressError
from fxcompress.weights import blocked, compensation
from fxcompress.weights.compensation import conjugate_gradient, exact, none
from fxcompress.weights.pattern import NM, Unstructured
from tests.weights import laws, oracles
from tests.weights.problems import damped, loss, none_zero, problem, random_mask

SEEDS = st.integers(0, 1000)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_closed_form_is_the_least_squares_solution(sparsity: float):
    laws.closed_form_is_the_least_squares_solution(sparsity=sparsity)


def test_closed_form_is_brain_surgeon_in_any_order():
    laws.closed_form_is_brain_surgeon_in_any_order()


@pytest.mark.parametrize(("law", "fault"), laws.FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_laws_see_planted_faults(law, fault):
    with pytest.raises(AssertionError):
        law(fault)


@given(st.integers(1, 6), st.integers(1, 16), SEEDS, st.floats(0, 1))
def test_closed_form_solves_the_constrained_problem(m: int, n: int, seed: int, sparsity: float):
    weight, D, mask = problem(m, n, seed)[0], damped(n, seed), random_mask(m, n, seed, sparsity)
    found = exact(weight, mask, D)
    torch.testing.assert_close(found, oracles.lagrange(weight, mask, D.matrix), rtol=1e-6, atol=1e-8)
    assert torch.count_nonzero(found[~mask]) == 0


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_both_sides_give_the_same(sparsity: float):
    """By the removed set through G and by the kept set through H."""
    weight, D, mask = problem(9, 16)[0], damped(16), random_mask(9, 16, sparsity=sparsity)
    removed = weight - compensation.solve_within(D.inverse, ~mask, weight) @ D.inverse
    kept = weight + compensation.solve_within(D.matrix, mask, none(weight, ~mask) @ D.matrix)
    torch.testing.assert_close(none(removed, mask), none(kept, mask))
    torch.testing.assert_close(exact(weight, mask, D), none(kept, mask))


@pytest.mark.parametrize("memory", [1, 5_000, 20_000])
def test_memory_changes_nothing(memory: int):
    weight, D, mask = problem(20, 16)[0], damped(16), random_mask(20, 16)
    torch.testing.assert_close(exact(weight, mask, D, memory), exact(weight, mask, D))


def test_memory_bounds_the_systems_at_work():
    counts = torch.tensor([4, 1, 8, 2, 8])
    chunks = compensation._chunks(counts, bytes_each=8, memory=2 * 8 * 8 * 8)  # one system of 8 and its factor
    assert [chunk.tolist() for chunk in chunks] == [[2], [4], [0, 3, 1]]


@given(
    SEEDS,
    st.sampled_from([Unstructured(0.5, "row"), Unstructured(0.3), NM(2, 4), NM(1, 4)]),
    st.sampled_from([4, 8, 16]),
)
def test_no_update_of_the_same_mask_loses_less(seed: int, pattern, block: int):
    weight, D = problem(4, 16, seed)[0], damped(16, seed)
    for compensate in ("S", "M"):
        swept, mask = blocked.sweep(weight, D, pattern, none_zero(weight), "S", compensate, block)
        least = loss(weight, exact(weight, mask, D), D.matrix)
        assert (least <= loss(weight, swept, D.matrix) * (1 + 1e-9)).all()
        assert (least <= loss(weight, none(weight, mask), D.matrix) * (1 + 1e-9)).all()


def test_weights_that_are_kept_all_or_removed_all_have_nothing_to_solve():
    weight, D = problem(3, 8)[0], damped(8)
    everything = torch.ones(3, 8, dtype=torch.bool)
    assert torch.equal(exact(weight, everything, D), weight)
    assert torch.count_nonzero(exact(weight, ~everything, D)) == 0


def test_systems_without_a_factor_are_refused():
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(CompressError, match=r"2 rows cannot be solved for.*raise damping"):
        compensation.solve_within(indefinite, torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2))


def test_unfinished_conjugate_gradients_have_a_gradient_left():
    """So that the law below can fail."""
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    found = conjugate_gradient(weight, mask, D, iterations=3)
    assert ((found - weight) @ D.matrix)[mask].abs().max() > 1e-6 * (weight @ D.matrix).abs().max()


def test_gradient_on_the_support_is_zero():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    found = conjugate_gradient(weight, mask, D, iterations=200, tolerance=1e-12)
    gradient = (found - weight) @ D.matrix
    assert gradient[mask].abs().max() < 1e-8 * (weight @ D.matrix).abs().max()
    assert torch.count_nonzero(found[~mask]) == 0


def test_conjugate_gradients_end_at_the_closed_form():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    found = conjugate_gradient(weight, mask, D, iterations=500, tolerance=1e-13)
    torch.testing.assert_close(found, exact(weight, mask, D))


def test_every_step_loses_less():
    weight, D, mask = problem(8, 32)[0], damped(32), random_mask(8, 32)
    losses = [loss(weight, conjugate_gradient(weight, mask, D, iterations=k), D.matrix) for k in range(12)]
    torch.testing.assert_close(losses[0], loss(weight, none(weight, mask), D.matrix))
    assert all((after <= before * (1 + 1e-9)).all() for before, after in itertools.pairwise(losses))


def test_nothing_moves_from_the_least_loss():
    weight, D, mask = problem(4, 16)[0], damped(16), random_mask(4, 16)
    least = exact(weight, mask, D)
    torch.testing.assert_close(conjugate_gradient(weight, mask, D, start=least), least)
