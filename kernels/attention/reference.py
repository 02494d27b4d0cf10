"""Grouped-query attention with every score written out."""

import torch
from torch import Tensor, einsum

from fxcompress.kernels._register import widen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Tensor:
    """Softmax attention; query head (k r) reads key and value head k.

        y_i = sum_j softmax_j(cap(scale q_i . k_j)) v_j    over the visible j; 0 if none is visible

    q (b, k*r, t, d), k (b, k, s, d), v (b, k, s, e), mask (b, s) bool: True where the key may be seen
    -> y (b, k*r, t, e), in the dtype of q. Queries stand at the end of the keys: query i is at position i + s - t.
    ``causal`` shows j <= position, a ``window`` > 0 shows position - j < window, a ``softcap`` > 0 gives
    cap(a) = softcap tanh(a / softcap).

    Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245; cap: Gemma 2, arXiv 2408.00118.
    """
    dtype = q.dtype
    q, k, v = widen(q, k, v)
    scores = scale * einsum("bkrtd,bksd->bkrts", q.unflatten(1, (k.shape[1], -1)), k)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(q.shape[2], k.shape[2], mask, causal, window, q.device)[:, None, None]  # (b k r t s)
    # the least finite score, not -inf: a row with nothing visible then has a softmax, which the second fill empties
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(~seen, 0)
    return einsum("bkrts,bkse->bkrte", weights, v).flatten(1, 2).to(dtype).contiguous()


def visible(t: int, s: int, mask: Tensor | None, causal: bool, window: int, device: torch.device) -> Tensor:
    """(b or 1, t, s) bool: which query sees which key."""
    distance = torch.arange(s - t, s, device=device)[:, None] - torch.arange(s, device=device)
    seen = torch.ones_like(distance, dtype=torch.bool)[None]
    if causal:
        seen = seen & (distance >= 0)
    if window:
        seen = seen & (distance < window)
    return seen if mask is None else seen & mask[:, None]
