"""The same attention through PyTorch's fused kernels, which never hold all scores at once."""

from functools import wraps

import torch.nn.functional as F
from torch import Tensor

from fxcompress.kernels.attention import reference


@wraps(reference.attention)
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
    if softcap or not q.dtype == k.dtype == v.dtype:  # no fused kernel caps its scores or mixes dtypes
        return reference.attention(q, k, v, mask, scale, causal, window, softcap)
    t, s = q.shape[2], k.shape[2]
    if mask is None and not window and (not causal or t == s):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True).contiguous()
    seen = reference.visible(t, s, mask, causal, window, q.device)[:, None]  # (b k*r t s)
    # what a kernel gives for a row that sees nothing is its own affair: let it see all, then drop what it saw
    blind = ~seen.any(-1, keepdim=True)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen | blind, scale=scale, enable_gqa=True)
    return y.masked_fill(blind, 0).contiguous()
