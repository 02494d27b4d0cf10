"""The scan and the convolution of Mamba-2 in a form that ``torch.compile`` turns into few loops, for training.

The references in ``fxcompress.kernels`` are exact for any decay and any length; these give up both for speed. All
intermediates have the channels last, as the projections have them: with the length last, loops gather single values.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, einsum
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.nemotron_h import modeling_nemotron_h


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Within this context, the Mamba-2 layers of transformers call the functions below."""
    files = (modeling_mamba2, modeling_nemotron_h)
    saved = [(file.mamba2_chunk_scan, file.causal_conv1d_fn) for file in files]
    for file in files:
        file.mamba2_chunk_scan, file.causal_conv1d_fn = ssd_scan, causal_conv1d
    try:
        yield
    finally:
        for file, functions in zip(files, saved, strict=True):
            file.mamba2_chunk_scan, file.causal_conv1d_fn = functions


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor, dt_bias: Tensor, **_: object
) -> Tensor:
    """``fxcompress.kernels.ssd_scan`` of whole chunks, with softplus, without limits of the step.

    x (b, l, g*r, p), dt (b, l, g*r), A (g*r), B and C (b, l, g, n), D and dt_bias (g*r) -> y (b, l, g*r, p)

    Decays are differences of cumulative sums, in float32: good while a chunk decays by less than exp(-1000) or so.
    Dao and Gu, Transformers are SSMs, arXiv 2405.21060, listing 1.
    """
    (b, length, heads, p), (g, n), q = x.shape, B.shape[2:], min(chunk_size, x.shape[1])
    dt = F.softplus(dt.float() + dt_bias.float())
    xdt = (x * dt[..., None]).to(x.dtype).view(b, -1, q, g, heads // g, p)
    B, C = B.view(b, -1, q, g, n), C.view(b, -1, q, g, n)
    a = (A.float() * dt).view(b, -1, q, g, heads // g).movedim(2, -1).cumsum(-1)  # (b c g r l)

    below = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
    decay = torch.exp((a[..., :, None] - a[..., None, :]).masked_fill(~below, -torch.inf))
    scores = einsum("bclgn,bcsgn->bcgls", C, B)[:, :, :, None] * decay
    y = einsum("bcgrls,bcsgrp->bclgrp", scores.to(x.dtype), xdt)

    to_end = torch.exp(a[..., -1:] - a).movedim(-1, 2)[..., None]  # (b c l g r 1)
    added = einsum("bcsgn,bcsgrp->bcgrpn", B, (xdt * to_end).to(x.dtype))
    states = _states_before(added, torch.exp(a[..., -1]))
    y = y + einsum("bclgn,bcgrpn->bclgrp", C, states.to(x.dtype)) * torch.exp(a).movedim(-1, 2)[..., None]
    return (y.reshape(b, length, heads, p) + D[:, None] * x).to(x.dtype)


def _states_before(added: Tensor, decay: Tensor) -> Tensor:
    """States (b c g r p n) at the start of each chunk, from what chunks add and their whole decays (b c g r)."""
    state, before = torch.zeros_like(added[:, 0], dtype=torch.float32), []
    for new, kept in zip(added.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = kept[..., None, None] * state + new
    return torch.stack(before, 1)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, activation: str, **_: object) -> Tensor:
    """``fxcompress.kernels.causal_conv1d`` with silu: x (b, c, l), weight (c, w), bias (c) -> (b, c, l)."""
    assert activation == "silu"
    width, length = weight.shape[1], x.shape[2]
    padded = F.pad(x.transpose(1, 2), (0, 0, width - 1, 0))  # (b, w - 1 + l, c)
    y = bias + sum(weight[:, j] * padded[:, j : j + length] for j in range(width))
    return F.silu(y).to(x.dtype).transpose(1, 2)
