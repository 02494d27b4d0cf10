"""mamba-ssm without CUDA: imported around its two compiled parts, and run on the references that it publishes."""

# ruff: noqa: E402  (it can be imported only after what is said here)
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, os.environ["FXCOMPRESS_MAMBA_SSM"])
sys.modules |= {name: ModuleType(name) for name in ("selective_scan_cuda", "causal_conv1d_cuda")}  # not built

from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from mamba_ssm.models import mixer_seq_simple
from mamba_ssm.modules import block, mamba2, mamba2_simple, mamba_simple, mha
from mamba_ssm.ops import selective_scan_interface
from mamba_ssm.ops.triton import layer_norm, layernorm_gated, ssd_combined

NO_LIMIT = (0.0, float("inf"))


def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    **others: Any,
) -> Tensor:
    """By the reference of the chunked scan, which takes whole chunks; with limits by the one of the plain scan."""
    assert not any(others.values())
    if dt_limit != NO_LIMIT:
        return ssd_combined.ssd_selective_scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit)
    length, pad = x.shape[1], -x.shape[1] % chunk_size
    x, B, C, z = (None if t is None else F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x, B, C, z))
    dt = F.pad(dt, (0, 0, 0, pad))
    y = ssd_combined.ssd_chunk_scan_combined_ref(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)
    return y[:, :length]


def split_conv1d_scan(*args: Any, seq_idx: None = None, initial_states: None = None, **others: Any) -> Tensor:
    return ssd_combined.mamba_split_conv1d_scan_ref(*args, **others)


def add_norm(*args: Any, is_rms_norm: bool = False, residual_in_fp32: bool = False, **others: Any) -> Any:
    reference = layer_norm.rms_norm_ref if is_rms_norm else layer_norm.layer_norm_ref
    return reference(*args, **others)


REFERENCES = {
    "causal_conv1d_fn": causal_conv1d_ref,
    "selective_scan_fn": selective_scan_interface.selective_scan_ref,
    "mamba_inner_fn": selective_scan_interface.mamba_inner_ref,
    "mamba_chunk_scan_combined": chunk_scan,
    "mamba_split_conv1d_scan_combined": split_conv1d_scan,
    "layer_norm_fn": add_norm,
    "rms_norm_fn": partial(add_norm, is_rms_norm=True),
    "rmsnorm_fn": layernorm_gated.rms_norm_ref,
}
NAMESPACES = [mixer_seq_simple, block, mamba2, mamba2_simple, mamba_simple, mha, selective_scan_interface]
NAMESPACES += [layer_norm, layernorm_gated, ssd_combined]


@contextlib.contextmanager
def references() -> Iterator[None]:
    """Within this context the package's models run on the CPU."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        for namespace in NAMESPACES:
            for name in REFERENCES.keys() & vars(namespace).keys():
                stack.enter_context(mock.patch.object(namespace, name, REFERENCES[name]))
        yield
