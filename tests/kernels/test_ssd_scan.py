from collections.abc import Callable
from dataclasses import astuple, dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from fxcompress.kernels import ssd_scan

INF = float("inf")


def recurrence(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    chunk_size: int,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> Tensor:
    """One head and one step at a time, as the equations stand."""
    length, heads = x.shape[1:3]
    by_head = []
    for h in range(heads):
        group = h * B.shape[2] // heads
        state, ys = 0.0, []
        for t in range(length):
            step = dt[:, t, h] + dt_bias[h]
            step = (F.softplus(step) if dt_softplus else step).clamp(dt_min, dt_max)
            added = (step[:, None] * x[:, t, h])[:, :, None] * B[:, t, group][:, None, :]
            state = torch.exp(A[h] * step)[:, None, None] * state + added
            ys.append((state @ C[:, t, group][:, :, None])[:, :, 0] + D[h] * x[:, t, h])
        by_head.append(torch.stack(ys, 1))
    return torch.stack(by_head, 2)


@dataclass(frozen=True)
class Shape:
    b: int = 2
    l: int = 12
    g: int = 2
    r: int = 2
    p: int = 3
    n: int = 4


def sample(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    b, l, g, r, p, n = astuple(shape)
    x, dt = torch.randn(b, l, g * r, p, dtype=dtype), torch.randn(b, l, g * r, dtype=dtype)
    A = -torch.rand(g * r, dtype=dtype) - 0.1
    B, C = torch.randn(2, b, l, g, n, dtype=dtype)
    D, dt_bias = torch.randn(2, g * r, dtype=dtype)
    return x, dt, A, B, C, D, dt_bias


@pytest.mark.parametrize(
    ("shape", "chunk_size"),
    {
        "one step": (Shape(l=1), 4),
        "whole chunks": (Shape(l=12), 4),
        "a rest": (Shape(l=11), 4),
        "a chunk longer than the sequence": (Shape(l=5), 64),
        "chunks of one": (Shape(l=5), 1),
        "63 steps": (Shape(b=1, l=63), 16),
        "one group": (Shape(g=1, r=4), 4),
        "one head a group": (Shape(g=4, r=1), 4),
        "all of size one": (Shape(1, 1, 1, 1, 1, 1), 1),
    }.values(),
    ids=str,
)
def test_it_is_the_recurrence(shape: Shape, chunk_size: int, assert_same: Callable):
    assert_same(ssd_scan, recurrence, (*sample(shape), chunk_size, True, 0.0, INF), 1e-12)


@pytest.mark.parametrize(("dt_softplus", "low", "high"), [(False, -INF, INF), (True, 0.3, 0.9), (False, 0.0, 0.5)])
def test_the_step_is_limited_after_its_softplus(dt_softplus: bool, low: float, high: float, assert_same: Callable):
    assert_same(ssd_scan, recurrence, (*sample(Shape()), 4, dt_softplus, low, high), 1e-12)


def test_absent_parameters_are_zero():
    x, dt, A, B, C, _, _ = sample(Shape())
    zero = torch.zeros(4, dtype=x.dtype)
    y = ssd_scan(x, dt, A, B, C, None, None, 4, True, 0.0, INF)
    torch.testing.assert_close(y, recurrence(x, dt, A, B, C, zero, zero, 4, True, 0.0, INF), rtol=0, atol=1e-12)


def test_it_is_what_transformers_computes(assert_same: Callable):
    def theirs(x, dt, A, B, C, D, dt_bias, chunk_size, dt_softplus, low, high):
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": (low, high)}
        return mamba2_chunk_scan(x, dt, A, B, C, chunk_size, **options)

    assert_same(ssd_scan, theirs, (*sample(Shape(l=63), torch.float32), 16, True, 0.0, 2.0), 1e-4)


def test_the_chunk_size_changes_nothing_but_rounding():
    inputs = sample(Shape(l=50))
    few, many = (ssd_scan(*inputs, chunk_size, True, 0.0, INF) for chunk_size in (50, 7))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-12)


def test_left_padding_with_zeros_in_x_changes_nothing():
    x, *others = sample(Shape(l=20))
    x[:, :7] = 0
    dt, A, B, C, D, dt_bias = others
    padded = ssd_scan(x, *others, 8, True, 0.0, INF)
    alone = ssd_scan(x[:, 7:], dt[:, 7:], A, B[:, 7:], C[:, 7:], D, dt_bias, 8, True, 0.0, INF)
    assert not padded[:, :7].any()
    torch.testing.assert_close(padded[:, 7:], alone, rtol=0, atol=1e-12)


def test_strong_decays_over_a_long_chunk_do_not_cancel():
    """Differences of cumulative sums in the hundreds of thousands would keep no digit of a small decay."""
    x, dt, A, B, C, D, _ = sample(Shape(l=128), torch.float32)
    dt[:, :-8] += 2e5
    dt[:, -8:] = 0.01
    exact = ssd_scan(*(t.double() for t in (x, dt, A, B, C, D)), None, 128, False, 0.0, INF)
    y = ssd_scan(x, dt, A, B, C, D, None, 128, False, 0.0, INF)
    torch.testing.assert_close(y[:, -8:], exact[:, -8:].float())


def test_heads_of_one_group_can_be_exchanged_and_heads_of_two_cannot():
    x, dt, A, B, C, D, dt_bias = sample(Shape())

    def permuted(heads: list[int]) -> tuple[Tensor, Tensor]:
        y = ssd_scan(x[:, :, heads], dt[:, :, heads], A[heads], B, C, D[heads], dt_bias[heads], 4, True, 0.0, INF)
        return y, ssd_scan(x, dt, A, B, C, D, dt_bias, 4, True, 0.0, INF)[:, :, heads]

    torch.testing.assert_close(*permuted([1, 0, 2, 3]))
    within, across = permuted([2, 1, 0, 3])
    assert (within - across).abs().max() > 0.1
