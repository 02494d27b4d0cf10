"""H of any batches, its damped inverse, and what is said when there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import CompressError
from fxcompress.weights.gram import Gram, relative_loss
from tests.weights.problems import inputs, problem


@given(st.integers(1, 12), st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 100))
def test_batches_add_up_to_the_mean_over_tokens(n: int, cuts: list[int], seed: int):
    x, gram = inputs(n, seed, tokens=40), Gram(n, torch.float64)
    for part in x.tensor_split(sorted(cuts)):
        gram.add(part)
    torch.testing.assert_close(gram.matrix, x.T @ x / 40)


def test_masked_tokens_do_not_count():
    x = inputs(6, tokens=20).view(4, 5, 6)
    mask = torch.tensor([1, 1, 0, 1, 0]).expand(4, 5)
    x[mask == 0] = float("nan")  # padding may hold anything
    gram = Gram(6, torch.float64)
    gram.add(x, mask)
    kept = x[mask == 1]
    torch.testing.assert_close(gram.matrix, kept.T @ kept / len(kept))


def test_tokens_may_weigh_differently():
    x, weight = inputs(5, tokens=8), torch.arange(8.0, dtype=torch.float64)
    gram = Gram(5, torch.float64)
    gram.add(x, weight)
    torch.testing.assert_close(gram.matrix, (x * weight[:, None]).T @ x / 28)


def test_half_precision_inputs_are_added_up_in_float32():
    x = inputs(8, tokens=64).bfloat16()
    gram = Gram.of(x)
    assert gram.matrix.dtype == torch.float32
    torch.testing.assert_close(gram.matrix, x.float().T @ x.float() / 64)


def test_matrix_is_symmetric_to_the_last_bit():
    H = Gram.of(inputs(33).float()).matrix
    assert torch.equal(H, H.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_and_factors_are_of_the_damped_matrix(dtype: torch.dtype):
    D = Gram.of(inputs(16).to(dtype), dtype).damped()
    eye = torch.eye(16, dtype=dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(D.matrix @ D.inverse, eye, rtol=0, atol=tolerance)
    torch.testing.assert_close(D.upper.T @ D.upper, D.inverse)
    assert torch.equal(D.upper, D.upper.triu())


def test_the_rest_of_the_factor_is_that_of_the_inverse_without_the_columns_before():
    D = Gram.of(inputs(10), torch.float64).damped()
    rest = D.upper[4:, 4:]
    torch.testing.assert_close(rest.T @ rest, torch.linalg.inv(D.matrix[4:, 4:]))


def test_damping_is_a_fraction_of_the_mean_diagonal():
    gram = Gram.of(inputs(12), torch.float64)
    D = gram.damped(0.1)
    assert D.damping == 0.1
    torch.testing.assert_close(D.matrix - gram.matrix, 0.1 * gram.matrix.diagonal().mean() * torch.eye(12).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_matrix_is_damped_more_and_says_so(dtype: torch.dtype):
    gram = Gram.of(inputs(32, tokens=8).to(dtype), dtype)
    D = gram.damped(0.0)
    assert 0 < D.damping <= 1e-4
    assert bool(D.inverse.isfinite().all())


def test_what_is_definite_in_float64_only_is_not_damped_more():
    x = inputs(24, tokens=500)
    x[:, 1] = x[:, 0] * (1 + 1e-5) + 1e-5 * x[:, 1]
    D = Gram.of(x.float()).damped(1e-9)
    assert D.matrix.dtype == torch.float64
    assert D.damping <= 1e-6


def test_dead_inputs_are_those_that_were_always_zero():
    x = inputs(8)
    x[:, [2, 5]] = 0
    gram = Gram.of(x, torch.float64)
    assert gram.dead.nonzero().flatten().tolist() == [2, 5]
    D = gram.damped()
    assert torch.count_nonzero(D.inverse[2]) == 1  # tied to no other input


def test_loss_is_that_of_the_outputs():
    weight, _ = problem(4, 8)
    pruned, x = weight * (weight.abs() > 0.5), inputs(8)
    of_outputs = ((weight - pruned) @ x.T).square().sum() / (weight @ x.T).square().sum()
    assert relative_loss(weight, pruned, Gram.of(x, torch.float64)) == pytest.approx(float(of_outputs))


def test_a_zero_weight_loses_nothing():
    zero = torch.zeros(2, 8)
    assert relative_loss(zero, zero, Gram.of(inputs(8))) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float):
    x = inputs(4, tokens=10)
    x[3, 1] = bad
    with pytest.raises(CompressError, match="1 of 10 calibration inputs are not finite"):
        Gram(4).add(x)


def test_what_cannot_be_added_up_is_refused():
    with pytest.raises(CompressError, match="inputs of width 5 in a Gram matrix of size 4"):
        Gram(4).add(torch.rand(3, 5))
    with pytest.raises(CompressError, match="take float32 or float64"):
        Gram(4, torch.float16)


def test_an_overflow_is_refused():
    gram = Gram(2)
    gram.add(torch.full((4, 2), 1e30))
    with pytest.raises(CompressError, match="inputs are too large; add up in float64"):
        _ = gram.matrix


def test_a_layer_that_no_input_reached_is_refused():
    with pytest.raises(CompressError, match="no calibration input has reached"):
        Gram(4).damped()
    with pytest.raises(CompressError, match="are zero: its Gram matrix says nothing"):
        Gram.of(torch.zeros(3, 4)).damped()


def test_negative_damping_is_refused():
    with pytest.raises(CompressError, match=r"damping=-0.1 is negative"):
        Gram.of(inputs(4)).damped(-0.1)


def test_a_factor_is_shared_until_more_inputs_come():
    gram = Gram.of(inputs(8))
    first = gram.damped(0.1)
    assert gram.damped(0.1) is first
    assert gram.damped(0.2).damping == 0.2
    gram.add(inputs(8) + 1)
    assert not torch.equal(gram.damped(0.1).matrix, first.matrix)
