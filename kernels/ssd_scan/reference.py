"""State space duality, the scan of Mamba-2, chunk by chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from fxcompress.kernels._register import widen


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    chunk_size: int,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> Tensor:
    """Scalar-decay state space model, from a zero state; head (g r) reads the B and C of its group g.

        dt' = clamp(softplus(dt + dt_bias), dt_min, dt_max)
        h_t = exp(A dt'_t) h_{t-1} + dt'_t x_t B_t^T
        y_t = h_t C_t + D x_t

    x (b, l, g*r, p), dt (b, l, g*r), A (g*r) negative, B and C (b, l, g, n), D (g*r), dt_bias (g*r)
    -> y (b, l, g*r, p), in the dtype of x. Any length; ``chunk_size`` changes the cost and the rounding only.

    Dao and Gu, Transformers are SSMs, arXiv 2405.21060, listing 1.
    """
    dtype, (b, length, _, p), g = x.dtype, x.shape, B.shape[2]
    x, dt, A, B, C, D, dt_bias = widen(x, dt, A, B, C, D, dt_bias)
    dt = _step_size(dt, dt_bias, dt_softplus, dt_min, dt_max)

    # b batch, c chunk, l and s positions in a chunk, g group, r head in its group, p head channel, n state
    chunk_size = min(chunk_size, length)
    xdt, a, Bc, Cc = (in_chunks(t, chunk_size) for t in (x * dt[..., None], A * dt, B, C))
    xdt = xdt.unflatten(3, (g, -1))  # (b c l g r p)
    a = a.movedim(3, 2).unflatten(2, (g, -1))  # (b c g r l)
    a_cumsum = a.cumsum(-1)

    # 1. within a chunk: attention with the decays as its mask
    scores = einsum("bclgn,bcsgn->bcgls", Cc, Bc)[:, :, :, None] * torch.exp(segsum(a))
    y = einsum("bcgrls,bcsgrp->bclgrp", scores, xdt)

    # 2. the state that each chunk adds, by its end
    decay_to_end = torch.exp(a_cumsum[..., -1:] - a_cumsum)
    added = einsum("bcsgn,bcsgrp->bcgrpn", Bc, xdt * decay_to_end.movedim(-1, 2)[..., None])

    # 3. the state that each chunk starts from
    states = _states_before(added, torch.exp(a_cumsum[..., -1]))

    # 4. what that state gives at each position
    decay_from_start = torch.exp(a_cumsum).movedim(-1, 2)[..., None]
    y = y + einsum("bclgn,bcgrpn->bclgrp", Cc, states) * decay_from_start

    y = y.reshape(b, -1, x.shape[2], p)[:, :length]
    if D is not None:
        y = y + D[:, None] * x
    return y.to(dtype).contiguous()


def _step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_min: float, dt_max: float) -> Tensor:
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    return dt.clamp(dt_min, dt_max)


def in_chunks(t: Tensor, chunk_size: int) -> Tensor:
    """(b, l, ...) -> (b, c, chunk, ...). Padding is a step of size zero: it decays nothing and adds nothing."""
    pad = -t.shape[1] % chunk_size
    return F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)).unflatten(1, (-1, chunk_size))


def segsum(a: Tensor) -> Tensor:
    """(..., l) -> (..., l, s): a_{s+1} + ... + a_l, and -inf where s > l.

    Each sum is formed by itself: the difference of two cumulative sums would cancel when they are large.
    """
    l = a.shape[-1]
    below = torch.ones(l, l, dtype=torch.bool, device=a.device).tril(-1)
    sums = a[..., None].expand(*a.shape, l).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~below.fill_diagonal_(True), -torch.inf)


def _states_before(added: Tensor, decay: Tensor) -> Tensor:
    """States (b c g r p n) at the start of each chunk, from what chunks add and their whole decays (b c g r)."""
    state, before = torch.zeros_like(added[:, 0]), []
    for new, kept in zip(added.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = kept[..., None, None] * state + new
    return torch.stack(before, 1)
