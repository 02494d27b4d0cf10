"""Scans and the convolution before them, in the signatures in which modeling code calls them.

Each begins with a state of zero and takes a row of the batch for one sequence. What mamba-ssm fuses around a scan is
written out, so that every projection and every norm is an op of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fxcompress.kernels as kernels
from fxcompress.errors import CaptureError
from fxcompress.replacements.norms import gated_norm
from fxcompress.replacements.refuse import refuse

NO_LIMIT = (0.0, float("inf"))


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    **others: Any,
) -> Any:
    """The scan of Mamba-2; D has a value for every head (h), or for every channel of every head (h p)."""
    refuse(others, "initial_states", "seq_idx", "cu_seqlens", "return_varlen_states")
    low, high = map(float, dt_limit)
    by_channel = D if D is not None and D.dim() == 2 else None
    by_head = D if by_channel is None else None
    y = kernels.ssd_scan(x, dt, A, B, C, by_head, dt_bias, chunk_size, dt_softplus, low, high)
    if by_channel is not None:
        y = (y + by_channel * x).to(y.dtype)
    if z is not None:
        y = y * F.silu(z)
    return (y, None) if return_final_states else y


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **others: Any,
) -> Any:
    """The scan of Mamba, whose B and C follow from the input: (batch, state, length)."""
    refuse(others, "initial_states", "seq_idx", "cu_seqlens")
    if B.dim() != 3 or C.dim() != 3:
        raise CaptureError(
            "a selective scan is captured with one B and one C for each position, (batch, state, length)"
        )
    y = kernels.selective_scan(x, dt, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, None) if return_last_state else y


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """The gated delta rule."""
    refuse({**others, "initial_state": initial_state}, "initial_state", "cu_seqlens")
    if use_qk_l2norm_in_kernel:
        query, key = (t * torch.rsqrt((t * t).sum(-1, keepdim=True) + 1e-6) for t in (query.float(), key.float()))
    scale = key.shape[-1] ** -0.5  # as it is at capture: it is no matter of the channels that are left
    return kernels.gated_delta(query * scale, key, value, g, beta, chunk_size), None


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None, **others: Any
) -> Tensor:
    """A depthwise convolution over the past."""
    refuse(others, "initial_states", "seq_idx", "cu_seqlens", "return_final_states")
    return kernels.causal_conv1d(x, weight, bias, activation or "")


def split_conv1d_scan(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    *,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    **others: Any,
) -> Tensor:
    """A Mamba-2 block after its first projection, whose output is

        gate (m) + value (m) + z (h p) + [x (h p) + B (g n) + C (g n)] + dt (h)

    where a gated network of m neurons may stand beside the scan. What is in brackets goes through the convolution.
    """
    refuse(others, "initial_states", "seq_idx", "return_final_states")
    heads, convolved = D.shape[0], conv1d_weight.shape[0]
    inner = D.numel() if D.dim() == 2 else heads * (headdim or 0)
    neurons, state = (zxbcdt.shape[-1] - inner - convolved - heads) // 2, (convolved - inner) // 2
    widths = [neurons, neurons] if neurons else []
    *beside, z, xBC, dt = zxbcdt.split([*widths, inner, convolved, heads], -1)
    xBC = causal_conv1d(xBC.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation).transpose(1, 2)
    x, B, C = xBC.split([inner, state, state], -1)
    x, B, C = (t.reshape(*t.shape[:2], n, -1) for t, n in ((x, heads), (B, ngroups), (C, ngroups)))
    y = ssd_scan(x, dt, A, B, C, chunk_size, D, None, dt_bias, dt_softplus=True, dt_limit=dt_limit).flatten(2)
    if rmsnorm_weight is None:
        y = y * F.silu(z)
    else:
        y = gated_norm(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate, is_rms_norm=True)
    if beside:
        gate, value = beside
        y = torch.cat([F.silu(gate) * value, y], -1)
    return y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)


def conv1d_scan(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    **others: Any,
) -> Tensor:
    """A Mamba block after its first projection: x (d) + z (d), channels before positions."""
    refuse({"B": B, "C": C, **others}, "B", "C", "B_proj_bias", "C_proj_bias", *_INNER_NORMS)
    x, z = xz.chunk(2, 1)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    sizes = [delta_proj_weight.shape[1], A.shape[1], A.shape[1]]
    dt, B, C = F.linear(x.transpose(1, 2), x_proj_weight).split(sizes, -1)
    dt = F.linear(dt, delta_proj_weight)
    dt, B, C = (t.transpose(1, 2) for t in (dt, B, C))
    y = selective_scan(x, dt, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


_INNER_NORMS = ("b_rms_weight", "c_rms_weight", "dt_rms_weight")
