"""The selective scan of Mamba-1, step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from fxcompress.kernels._register import widen


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """Diagonal state space model with input-dependent dt, B and C, from a zero state.

        dt' = softplus(dt + dt_bias)
        h_t = exp(dt'_t A) h_{t-1} + dt'_t x_t B_t
        y_t = (h_t C_t + D x_t) silu(z_t)

    x, dt, z (b, d, l), A (d, n) negative, B and C (b, n, l), D and dt_bias (d) -> y (b, d, l), in the dtype of x.

    Gu and Dao, Mamba: linear-time sequence modeling with selective state spaces, arXiv 2312.00752, algorithm 2.
    """
    dtype = x.dtype
    x, dt, A, B, C, D, z, dt_bias = widen(x, dt, A, B, C, D, z, dt_bias)
    if dt_bias is not None:
        dt = dt + dt_bias[:, None]
    if dt_softplus:
        dt = F.softplus(dt)

    # one step at a time: all discretised steps at once would be l times the state
    state, outputs = x.new_zeros(*x.shape[:2], A.shape[1]), []  # (b d n)
    for dt_t, dtx_t, B_t, C_t in zip(dt.unbind(-1), (dt * x).unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        state = torch.exp(dt_t[..., None] * A) * state + dtx_t[..., None] * B_t[:, None]
        outputs.append(einsum("bdn,bn->bd", state, C_t))
    y = torch.stack(outputs, -1)

    if D is not None:
        y = y + D[:, None] * x
    if z is not None:
        y = y * F.silu(z)
    return y.to(dtype).contiguous()
