from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

INF = float("inf")


def ssd_scan(f: Callable[..., Tensor]) -> tuple:
    A = -f(4).abs() - 0.1
    return f(2, 7, 4, 3), f(2, 7, 4), A, f(2, 7, 2, 5), f(2, 7, 2, 5), f(4), f(4), 4, True, 0.0, INF


def selective_scan(f: Callable[..., Tensor]) -> tuple:
    A = -f(4, 3).abs() - 0.1
    return f(2, 4, 7), f(2, 4, 7), A, f(2, 3, 7), f(2, 3, 7), f(4), f(2, 4, 7), f(4), True


def causal_conv1d(f: Callable[..., Tensor]) -> tuple:
    return f(2, 5, 7), f(5, 4), f(5), "silu"


def attention(f: Callable[..., Tensor]) -> tuple:
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    return f(2, 4, 5, 4), f(2, 2, 7, 4), f(2, 2, 7, 6), mask, 0.5, True, 4, 0.0


def experts(f: Callable[..., Tensor]) -> tuple:
    index = torch.rand(7, 4).topk(2).indices
    return f(7, 6), index, f(7, 2), f(4, 10, 6), f(4, 3, 5), f(4, 10), f(4, 3), True, "silu"


def csr_linear(f: Callable[..., Tensor]) -> tuple:
    crow, col = torch.tensor([0, 2, 2, 5, 6], dtype=torch.int32), torch.tensor([1, 4, 0, 2, 5, 3], dtype=torch.int32)
    return f(2, 3, 6), crow, col, f(6), f(4)


def sparse24_linear(f: Callable[..., Tensor]) -> tuple:
    meta = torch.tensor([[4, 14], [9, 8], [12, 13], [4, 9], [14, 12]], dtype=torch.uint8)  # a + 4 b, a < b
    return f(2, 3, 8), f(5, 4), meta, f(5)


def gated_delta(f: Callable[..., Tensor]) -> tuple:
    q, k = (torch.nn.functional.normalize(f(2, 7, 2, 5), dim=-1) for _ in range(2))  # the rule takes keys of length 1
    return q, k, f(2, 7, 4, 3), -f(2, 7, 4).abs(), f(2, 7, 4).sigmoid(), 4


ALL = (attention, causal_conv1d, csr_linear, experts, gated_delta, selective_scan, sparse24_linear, ssd_scan)
OPS = {op.__name__: op for op in ALL}


@pytest.fixture
def sample() -> Callable[..., tuple]:
    """Inputs of an op by its name, small, every optional tensor present."""
    return lambda name, dtype=torch.float64: OPS[name](lambda *shape: torch.randn(shape, dtype=dtype))


def value_and_gradients(function: Callable[..., Tensor], inputs: tuple) -> list[Tensor]:
    """The output, and the gradients of a random projection of it by all floating-point inputs."""
    inputs = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    y = function(*inputs)
    projection = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    differentiable = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, differentiable, projection)]


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Two functions agree in value and in all gradients; ``tolerance`` is relative and absolute."""

    def check(one: Callable[..., Tensor], other: Callable[..., Tensor], inputs: tuple[Any, ...], tolerance: float):
        got, expected = value_and_gradients(one, inputs), value_and_gradients(other, inputs)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
