from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, NemotronHConfig
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from fxcompress.kernels import experts


def token_by_token(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor,
    down_bias: Tensor,
    gated: bool,
    activation: str,
) -> Tensor:
    """One token and one of its choices at a time, as the equation stands."""
    act, ys = ACT2FN[activation], []
    for t in range(x.shape[0]):
        y = x.new_zeros(down.shape[1])
        for j in range(index.shape[1]):
            e = index[t, j]
            if e == up.shape[0]:
                continue
            u = up[e] @ x[t] + up_bias[e]
            u = act(u[: len(u) // 2]) * u[len(u) // 2 :] if gated else act(u)
            y = y + weight[t, j] * (down[e] @ u + down_bias[e])
        ys.append(y)
    return torch.stack(ys)


def sample(gated: bool, tokens: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Four experts, two choices a token; widths 3 in, 4 neurons, 5 out."""
    rows = 8 if gated else 4
    shapes = [(4, rows, 3), (4, 5, 4), (4, rows), (4, 5)]
    index = torch.rand(tokens, 4).topk(2).indices
    parameters = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [torch.randn(tokens, 3, dtype=dtype), index, torch.rand(tokens, 2, dtype=dtype), *parameters]


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"])
def test_it_is_the_weighted_sum_over_a_tokens_choices(gated: bool, activation: str, assert_same: Callable):
    assert_same(experts, token_by_token, (*sample(gated), gated, activation), 1e-12)


@pytest.mark.parametrize("tokens", [0, 1, 63])
def test_any_number_of_tokens(tokens: int):
    inputs = sample(True, tokens)
    y = experts(*inputs, True, "silu")
    assert y.shape == (tokens, 5)
    if tokens:
        torch.testing.assert_close(y, token_by_token(*inputs, True, "silu"), rtol=0, atol=1e-12)


def test_the_id_after_the_last_stands_for_no_expert(assert_same: Callable):
    inputs = sample(True)
    inputs[1][0] = 4
    inputs[1][1, 0] = 4
    assert not experts(*inputs, True, "silu")[0].any()
    assert_same(experts, token_by_token, (*inputs, True, "silu"), 1e-12)


def test_an_expert_chosen_twice_counts_twice(assert_same: Callable):
    inputs = sample(False)
    inputs[1][:] = 2
    assert_same(experts, token_by_token, (*inputs, False, "relu2"), 1e-12)


def test_an_expert_that_no_token_chose_gets_no_gradient():
    x, index, weight, up, down, *_ = sample(True)
    index[index == 3] = 4
    up.requires_grad_()
    experts(x, index, weight, up, down, None, None, True, "silu").sum().backward()
    assert not up.grad[3].any()
    assert up.grad[:3].any()


@pytest.mark.parametrize("wrong", [5, 7, -1])
def test_an_id_beyond_that_is_an_error(wrong: int):
    inputs = sample(True)
    inputs[1][0, 0] = wrong
    with pytest.raises((ValueError, RuntimeError)):
        experts(*inputs, True, "silu")


def test_absent_biases_are_zero():
    *inputs, up_bias, down_bias = sample(True)
    y = token_by_token(*inputs, torch.zeros_like(up_bias), torch.zeros_like(down_bias), True, "silu")
    torch.testing.assert_close(experts(*inputs, None, None, True, "silu"), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_it_is_what_transformers_computes(gated: bool, assert_same: Callable):
    if gated:
        module = MixtralExperts(MixtralConfig(num_local_experts=4, hidden_size=3, intermediate_size=4))
    else:
        module = NemotronHExperts(NemotronHConfig(n_routed_experts=4, hidden_size=3, moe_intermediate_size=4))
    name, activation = ("gate_up_proj", "silu") if gated else ("up_proj", "relu2")

    def theirs(x: Tensor, index: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.func.functional_call(module, {name: up, "down_proj": down}, (x, index, weight))

    def ours(x: Tensor, index: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return experts(x, index, weight, up, down, None, None, gated, activation)

    x, index, weight, up, *_ = sample(gated, dtype=torch.float32)
    assert_same(ours, theirs, (x, index, weight, up, torch.randn(4, 3, 4)), 1e-5)
