"""Depthwise causal convolution on CUDA: one program computes a block of channels by a block of positions."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_C, BLOCK_L = 32, 64  # whole sectors along either dim: x comes channels-last as often as not


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """See ``reference.causal_conv1d``; the activation is none or SiLU. x may have any strides."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(x, weight.contiguous(), None if bias is None else bias.contiguous(), y, silu=bool(activation))
    return y


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, silu: bool) -> None:
    b, c, l = x.shape
    grid = (triton.cdiv(l, BLOCK_L), triton.cdiv(c, BLOCK_C), b)
    causal_conv1d_kernel[grid](
        x, weight, bias, y, c, l, *x.stride(), W=weight.shape[1], SILU=silu, BLOCK_C=BLOCK_C, BLOCK_L=BLOCK_L
    )


@triton.jit
def causal_conv1d_kernel(
    p_x,
    p_weight,
    p_bias,
    p_y,
    C,
    L,
    stride_b,
    stride_c,
    stride_l,
    W: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    i_b = tl.program_id(2).to(tl.int64)
    i_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    i_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    in_c = i_c < C

    # every operand is widened as soon as it is loaded: 16-bit sums would lose what the reference keeps
    b_y = tl.zeros((BLOCK_C, BLOCK_L), tl.float32)
    for j in tl.static_range(W):
        t = i_l - (W - 1) + j
        seen = in_c[:, None] & ((t >= 0) & (t < L))[None, :]
        at = p_x + i_b * stride_b + i_c[:, None] * stride_c + t[None, :] * stride_l
        b_x = tl.load(at, mask=seen, other=0.0).to(tl.float32)
        b_w = tl.load(p_weight + i_c * W + j, mask=in_c, other=0.0).to(tl.float32)
        b_y += b_w[:, None] * b_x
    if p_bias is not None:
        b_y += tl.load(p_bias + i_c, mask=in_c, other=0.0).to(tl.float32)[:, None]
    if SILU:
        b_y = b_y * tl.sigmoid(b_y)

    written = in_c[:, None] & (i_l < L)[None, :]
    at = p_y + i_b * C * L + i_c[:, None] * L + i_l[None, :]
    tl.store(at, b_y.to(p_y.dtype.element_ty), mask=written)
