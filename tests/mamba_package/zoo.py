"""Small models and layers of mamba-ssm whose sizes differ from one another."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from fxcompress import Program, capture
from tests import models
from tests.mamba_package.package import mamba2, mamba2_simple, mamba_simple, mha, mixer_seq_simple

EXAMPLE = (models.ids(2, 24),)

_MAMBA2 = {"layer": "Mamba2", "d_state": 7, "headdim": 8, "chunk_size": 8}
_GROUPS = {**_MAMBA2, "ngroups": 3}
_HEADS = {"num_heads": 6, "num_heads_kv": 2, "head_dim": 8, "causal": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {"ssm_cfg": {"d_state": 7, "dt_rank": 5}},
    "mamba2": {"ssm_cfg": _MAMBA2},
    "groups": {"ssm_cfg": _GROUPS, "tie_embeddings": False},
    "mlp": {"ssm_cfg": {**_GROUPS, "bias": True}, "d_intermediate": 128},
    "beside": {"ssm_cfg": {**_GROUPS, "d_ssm": 72, "D_has_hdim": True, "rmsnorm": False, "dt_limit": (0.1, 0.9)}},
    "attention": {"ssm_cfg": _GROUPS, "attn_layer_idx": [1], "attn_cfg": {**_HEADS, "d_conv": 4}},
    "not fused": {"ssm_cfg": {**_GROUPS, "use_mem_eff_path": False}, "rms_norm": False, "fused_add_norm": False},
}


class Own(mamba2.Mamba2):
    """Inherits its forward, and with it the functions that the other file calls."""


_LAYER = {"d_model": 48, "d_state": 7}
_HEADED = {**_LAYER, "headdim": 8, "chunk_size": 8}
LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "Mamba": (mamba_simple.Mamba, {**_LAYER, "bias": True}),
    "Mamba, not fused": (mamba_simple.Mamba, {**_LAYER, "use_fast_path": False}),
    "Mamba2": (mamba2.Mamba2, {**_HEADED, "norm_before_gate": True}),
    "Mamba2, groups": (mamba2.Mamba2, {**_HEADED, "ngroups": 3, "norm_before_gate": True, "d_ssm": 72}),
    "Mamba2, D by channel": (mamba2.Mamba2, {**_HEADED, "D_has_hdim": True}),
    "Mamba2, no norm": (mamba2.Mamba2, {**_HEADED, "rmsnorm": False, "dt_limit": (0.1, 0.9)}),
    "Mamba2Simple": (mamba2_simple.Mamba2Simple, _HEADED),
    "Mamba2Simple, not fused": (mamba2_simple.Mamba2Simple, {**_HEADED, "ngroups": 3, "use_mem_eff_path": False}),
    "a subclass": (Own, _HEADED),
    "MHA": (mha.MHA, {"embed_dim": 48, **_HEADS, "d_conv": 4, "mlp_dim": 256}),
}


def layer(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, options = LAYERS[name]
    return models.perturb(kind(**options)).eval()


def language_model(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = mixer_seq_simple.MambaConfig(**{"d_model": 48, "n_layer": 3, "vocab_size": 96, **CONFIGS[name], **options})
    return models.perturb(mixer_seq_simple.MambaLMHeadModel(config)).eval()


def referable(model: nn.Module) -> nn.Module:
    """The model off the fused path wherever the package's reference of it cannot: with groups and beside neurons."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, mamba2.Mamba2) and (module.ngroups > 1 or module.d_ssm < module.d_inner):
            module.use_mem_eff_path = False
    return model


@functools.cache
def captured(name: str) -> Program:
    return capture(language_model(name), EXAMPLE)
