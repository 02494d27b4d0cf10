"""The norms that mamba-ssm fuses with a gate or with an addition: y = norm(x silu(z)), and y = norm(x + residual).

They compute in float32 or wider and give the dtype of x, as the fused kernels do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress.replacements.refuse import refuse


def gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """norm(x silu(z)), or norm(x) silu(z) with ``norm_before_gate``; every ``group_size`` channels by themselves."""
    y = _widen(x)
    gate = None if z is None else F.silu(_widen(z))
    if gate is not None and not norm_before_gate:
        y = y * gate
    y = _norm(y, weight, bias, eps, group_size, is_rms_norm)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    **others: Any,
) -> Any:
    """norm(x + residual), and with ``prenorm`` also the sum, which is the next residual."""
    refuse(others, "x1", "weight1", "bias1", "rowscale", "dropout_p", "return_dropout_mask")
    total = _widen(x) if residual is None else _widen(x) + _widen(residual)
    y = _norm(total, weight, bias, eps, None, is_rms_norm).to(x.dtype)
    kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    return (y, total.to(kept)) if prenorm else y


def _norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, group_size: int | None, is_rms_norm: bool
) -> Tensor:
    width = (x.shape[-1] if group_size is None else group_size,)
    grouped = x if width == x.shape[-1:] else x.reshape(*x.shape[:-1], -1, *width)
    y = F.rms_norm(grouped, width, None, eps) if is_rms_norm else F.layer_norm(grouped, width, None, None, eps)
    y = (y if grouped is x else y.flatten(-2)) * weight
    return y if bias is None else y + bias


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
