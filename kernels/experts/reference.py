"""Mixture of experts: every token through the few experts that its router chose."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fxcompress.kernels._register import widest
from fxcompress.kernels.activations import activation_named


def experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gated: bool,
    activation: str,
) -> Tensor:
    """The weighted sum of the chosen experts' outputs, computed for the routed tokens only.

        y_t = sum_j weight[t, j] (down_e a(up_e x_t + up_bias_e) + down_bias_e)    with e = index[t, j]
        a(u) = act(u), or act(gate) * u for a gated expert, gate being the first half of up's rows

    x (t, h), index (t, k) expert ids, weight (t, k), up (e, f, h) or gated (e, 2*f, h), down (e, o, f), up_bias (e, f)
    or gated (e, 2*f), down_bias (e, o) -> y (t, o), in the dtype of x. The id e stands for no expert.

    Shazeer et al., Outrageously large neural networks, arXiv 1701.06538; gated: GLU variants, arXiv 2002.05202.
    """
    act, dtype = activation_named(activation), widest(x, weight, up, down, up_bias, down_bias)
    num_experts, choices = up.shape[0], index.shape[1]
    by_expert = index.flatten().argsort(stable=True)  # (token, choice) pairs, those of expert 0 first
    count = index.flatten().bincount(minlength=num_experts + 1).tolist()
    *routed, _no_expert = by_expert.split(count)

    y = x.new_zeros(x.shape[0], down.shape[1], dtype=dtype)
    up_biases = [None] * num_experts if up_bias is None else up_bias.to(dtype).unbind()
    down_biases = [None] * num_experts if down_bias is None else down_bias.to(dtype).unbind()
    # strict: an id beyond e is an error, not silence
    for pairs, up_e, down_e, b_up, b_down in zip(routed, up, down, up_biases, down_biases, strict=True):
        if len(pairs):
            token = pairs // choices
            u = neurons(x[token].to(dtype), up_e.to(dtype), b_up, gated, act)
            u = F.linear(u, down_e.to(dtype), b_down)
            y.index_add_(0, token, u * weight.flatten()[pairs, None].to(dtype))
    return y.to(x.dtype)


def neurons(x: Tensor, up: Tensor, bias: Tensor | None, gated: bool, act: Callable[[Tensor], Tensor]) -> Tensor:
    """What one expert's second projection reads: x (t, h), up (f, h) or gated (2*f, h) -> (t, f)."""
    u = F.linear(x, up, bias)
    return act(u[:, : u.shape[1] // 2]) * u[:, u.shape[1] // 2 :] if gated else act(u)
