from collections.abc import Callable
from dataclasses import astuple, dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from fxcompress.kernels import selective_scan


def recurrence(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    dt_softplus: bool,
) -> Tensor:
    """One channel and one step at a time, as the equations stand."""
    by_channel = []
    for d in range(x.shape[1]):
        state, ys = 0.0, []
        for t in range(x.shape[2]):
            step = dt[:, d, t] + dt_bias[d]
            step = (F.softplus(step) if dt_softplus else step)[:, None]
            state = torch.exp(step * A[d]) * state + step * x[:, d, t, None] * B[:, :, t]
            y = (state * C[:, :, t]).sum(1) + D[d] * x[:, d, t]
            ys.append(y * z[:, d, t] * torch.sigmoid(z[:, d, t]))
        by_channel.append(torch.stack(ys, 1))
    return torch.stack(by_channel, 1)


@dataclass(frozen=True)
class Shape:
    b: int = 2
    d: int = 3
    l: int = 7
    n: int = 4


def sample(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    b, d, l, n = astuple(shape)
    x, dt, z = torch.randn(3, b, d, l, dtype=dtype)
    A = -torch.rand(d, n, dtype=dtype) - 0.1
    B, C = torch.randn(2, b, n, l, dtype=dtype)
    D, dt_bias = torch.randn(2, d, dtype=dtype)
    return x, dt, A, B, C, D, z, dt_bias


@pytest.mark.parametrize("shape", [Shape(), Shape(l=1), Shape(b=1, l=63), Shape(n=1), Shape(1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dt_softplus", [True, False])
def test_it_is_the_recurrence(shape: Shape, dt_softplus: bool, assert_same: Callable):
    inputs = sample(shape)
    inputs[1].abs_()  # a step is positive
    inputs[-1].abs_()
    assert_same(selective_scan, recurrence, (*inputs, dt_softplus), 1e-12)


def test_it_is_what_transformers_computes(assert_same: Callable):
    def theirs(x, dt, A, B, C, D, z, dt_bias, dt_softplus):
        options = {"D": D, "z": z, "delta_bias": dt_bias, "delta_softplus": dt_softplus}
        return mamba_selective_scan(x, dt, A, B, C, **options)

    assert_same(selective_scan, theirs, (*sample(Shape(l=40), torch.float32), True), 1e-4)


def test_absent_parameters_are_zero_and_an_absent_gate_is_open():
    x, dt, A, B, C, _, z, _ = sample(Shape())
    zero = torch.zeros(3, dtype=x.dtype)
    y = selective_scan(x, dt, A, B, C, None, None, None, True) * F.silu(z)
    torch.testing.assert_close(y, recurrence(x, dt, A, B, C, zero, z, zero, True), rtol=0, atol=1e-12)


def test_left_padding_with_zeros_in_x_changes_nothing():
    x, dt, A, B, C, D, z, dt_bias = sample(Shape(l=9))
    x[..., :4] = 0
    padded = selective_scan(x, dt, A, B, C, D, z, dt_bias, True)
    x, dt, B, C, z = (t[..., 4:] for t in (x, dt, B, C, z))
    alone = selective_scan(x, dt, A, B, C, D, z, dt_bias, True)
    assert not padded[..., :4].any()
    torch.testing.assert_close(padded[..., 4:], alone, rtol=0, atol=1e-12)


def test_channels_do_not_meet():
    x, *others = sample(Shape())
    x.requires_grad_()
    selective_scan(x, *others, True)[:, 0].sum().backward()
    assert x.grad[:, 0].all()
    assert not x.grad[:, 1:].any()
