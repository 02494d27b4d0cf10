from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


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
