"""The one table of functions that capture replaces by ops of ours, by the name of the function, never by model.

Modeling code calls its scans, convolutions, attention and experts through module-level functions or registries. While
a model is captured those lead to ``fxcompress.kernels``, whose ops hold for every batch and length; afterwards, also
after an error, everything is as it was.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import fxcompress.kernels as kernels
from fxcompress.errors import CaptureError
from fxcompress.kernels.activations import ACTIVATIONS
from fxcompress.replacements import norms, scans
from fxcompress.replacements.refuse import refuse

NAME = "fxcompress"  # under which our attention, mask and experts functions are registered


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention with un-repeated keys and values, in the signature of transformers' registry."""
    refuse(others, "s_aux", "position_bias")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = kernels.attention(
        query, key, value, attention_mask, float(scale), bool(is_causal), int(sliding_window or 0), float(softcap or 0)
    )
    return out.transpose(1, 2), None


def padding_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """Hand the 2-D padding mask through: causality and windows are said by the attention op itself."""
    if attention_mask is None or attention_mask.dim() == 2:
        return attention_mask if attention_mask is None else attention_mask.bool()
    raise CaptureError("a 4-D attention mask was given; capture takes the 2-D padding mask (batch, length)")


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Routed experts with stacked weights, in the signature of transformers' registry."""
    kind = type(module).__name__
    if getattr(module, "has_bias", False) or getattr(module, "is_transposed", False):
        raise CaptureError(f"{kind}: stacked experts with biases or transposed weights are not supported yet")
    gated = getattr(module, "has_gate", True)
    if gated and not getattr(module, "is_concatenated", True):
        raise CaptureError(f"{kind}: experts with interleaved gate and up projections are not supported yet")
    up = module.gate_up_proj if gated else module.up_proj
    return kernels.experts(
        hidden_states, top_k_index, top_k_weights, up, module.down_proj, None, None, gated, _activation(module.act_fn)
    )


FUNCTIONS: dict[str, Callable] = {
    # of transformers' modeling files
    "mamba2_chunk_scan": scans.ssd_scan,
    "mamba_selective_scan": scans.selective_scan,
    "torch_chunk_gated_delta_rule": scans.gated_delta,
    # of transformers and causal-conv1d
    "causal_conv1d_fn": scans.causal_conv1d,
    # of mamba-ssm
    "mamba_chunk_scan_combined": scans.ssd_scan,
    "mamba_split_conv1d_scan_combined": scans.split_conv1d_scan,
    "selective_scan_fn": scans.selective_scan,
    "mamba_inner_fn": scans.conv1d_scan,
    "layernorm_fn": norms.gated_norm,
    "rmsnorm_fn": partial(norms.gated_norm, is_rms_norm=True),
    "layer_norm_fn": norms.add_norm,
    "rms_norm_fn": partial(norms.add_norm, is_rms_norm=True),
}

ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, padding_mask)
ALL_EXPERTS_FUNCTIONS.register(NAME, experts)


@contextlib.contextmanager
def replaced(model: nn.Module) -> Iterator[None]:
    """Within this context the functions that the model's modules call are the ones of the table."""
    saved = []
    # a class may inherit its forward from another file
    for source in {kind.__module__ for module in model.modules() for kind in type(module).__mro__}:
        namespace = sys.modules[source]
        for name, function in FUNCTIONS.items():
            if hasattr(namespace, name):
                saved.append((namespace, name, getattr(namespace, name)))
                setattr(namespace, name, function)
    try:
        with _implementations(model):
            yield
    finally:
        for namespace, name, function in saved:
            setattr(namespace, name, function)


@contextlib.contextmanager
def _implementations(model: nn.Module) -> Iterator[None]:
    """Lead the attention and experts registries of every config in the model to our functions."""
    owned = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in owned if isinstance(config, PreTrainedConfig)}
    saved = [(c, c._attn_implementation, c._experts_implementation) for c in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = config._experts_implementation = NAME
        yield
    finally:
        for config, attention_name, experts_name in saved:
            config._attn_implementation = attention_name
            config._experts_implementation = experts_name


def _activation(function: nn.Module) -> str:
    for name in ACTIVATIONS:
        if name in ACT2FN and type(ACT2FN[name]) is type(function):
            return name
    known = ", ".join(sorted(ACTIVATIONS))
    raise CaptureError(f"experts use the activation {type(function).__name__}; the known ones are {known}")
