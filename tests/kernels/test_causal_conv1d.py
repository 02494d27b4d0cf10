from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn

from fxcompress.kernels import causal_conv1d
from fxcompress.kernels.activations import ACTIVATIONS

SHAPES = [(2, 3, 7, 4), (2, 3, 1, 4), (2, 3, 3, 4), (1, 2, 63, 3), (2, 3, 5, 1), (1, 1, 1, 1)]


def sum_of_taps(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """One output at a time, as the equation stands."""
    width = weight.shape[1]
    ys = []
    for t in range(x.shape[2]):
        taps = [weight[:, j] * x[:, :, t - width + 1 + j] for j in range(width) if t - width + 1 + j >= 0]
        ys.append(bias + sum(taps))
    return ACT2FN[activation or "linear"](torch.stack(ys, -1))


def sample(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    b, c, l, w = shape
    return torch.randn(b, c, l, dtype=dtype), torch.randn(c, w, dtype=dtype), torch.randn(c, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["", "silu"])
def test_it_is_the_sum_of_its_taps(shape: tuple[int, int, int, int], activation: str, assert_same: Callable):
    assert_same(causal_conv1d, sum_of_taps, (*sample(shape), activation), 1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_knows_every_activation(activation: str, assert_same: Callable):
    assert_same(causal_conv1d, sum_of_taps, (*sample((2, 3, 7, 4)), activation), 1e-12)


@pytest.mark.parametrize("activation", ["", "silu"])
def test_it_is_what_transformers_computes(activation: str, assert_same: Callable):
    def theirs(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return causal_conv1d_fn(x, weight, bias, activation=activation or None)

    assert_same(causal_conv1d, theirs, (*sample((2, 5, 40, 4), torch.float32), activation), 1e-5)


def test_an_absent_bias_is_zero():
    x, weight, bias = sample((2, 3, 7, 4))
    with_zero = causal_conv1d(x, weight, torch.zeros_like(bias), "silu")
    torch.testing.assert_close(causal_conv1d(x, weight, None, "silu"), with_zero)


def test_nothing_flows_from_the_future_or_from_another_channel():
    x, weight, bias = sample((1, 3, 9, 4))
    x.requires_grad_()
    causal_conv1d(x, weight, bias, "silu")[0, 1, 5].backward()
    reached = x.grad[0].nonzero().tolist()
    assert reached == [[1, 2], [1, 3], [1, 4], [1, 5]]
