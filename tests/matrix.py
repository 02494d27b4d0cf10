"""The passes that every family is tried with, by what they cut. Magnitudes or random scores: no calibration."""

from __future__ import annotations

from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneExpertFFN,
    PruneExperts,
    PruneFFN,
    PruneLatentRanks,
    PruneSSMChannels,
    PruneSSMGroups,
    PruneSSMHeads,
    PruneSSMState,
    RemoveLayers,
)
from fxcompress.pipeline import Pass

PASSES: dict[str, Pass] = {
    "FFN neurons": PruneFFN(ratio=0.25),
    "experts": PruneExperts(ratio=1 / 3),
    "expert neurons": PruneExpertFFN(ratio=0.25),
    "query heads": PruneAttentionHeads(ratio=1 / 3),
    "KV heads": PruneAttentionHeads(ratio=0.5, kv=True),
    "query and key channels": PruneAxes(role="qk_channel", ratio=0.25),
    "value channels": PruneAxes(role="v_channel", ratio=0.25),
    "latent ranks": PruneLatentRanks(ratio=0.25),
    "SSM heads": PruneSSMHeads(ratio=0.5),
    "SSM groups": PruneSSMGroups(ratio=1 / 3),
    "SSM channels": PruneSSMChannels(ratio=0.25),
    "SSM state": PruneSSMState(ratio=0.25),
    "residual width": PruneEmbedding(ratio=0.25),
    "layers": RemoveLayers(layers=(1,)),
}

_ALWAYS = {"residual width", "layers"}
_ATTENTION = {"query heads", "KV heads", "query and key channels", "value channels"}
_MAMBA2 = {"SSM heads", "SSM groups", "SSM channels", "SSM state"}
_MAMBA = {"SSM channels", "SSM state", "latent ranks"}  # the rank of its step sizes
_MOE = {"experts", "expert neurons"}
_DENSE = _ALWAYS | _ATTENTION | {"FFN neurons"}

APPLIES: dict[str, set[str]] = {
    **dict.fromkeys(("llama", "qwen3", "mistral", "qwen2", "gemma2", "gemma3", "gpt2", "opt", "gpt_neox"), _DENSE),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _ALWAYS | _ATTENTION | _MOE),
    "deepseek_v3": _DENSE | _MOE | {"latent ranks"},
    "mamba": _ALWAYS | _MAMBA,
    "mamba2": _ALWAYS | _MAMBA2,
    **dict.fromkeys(("nemotron_h", "falcon_h1"), _DENSE | _MAMBA2),
    "bamba": (_DENSE | _MAMBA2) - {"query and key channels"},  # its two rotary pairs: a quarter of them is nothing
    "nemotron_h_moe": _DENSE | _MAMBA2 | _MOE,
    "nemotron_h_latent": _DENSE | _MAMBA2 | _MOE | {"latent ranks"},  # what its experts read and give
    "jamba": _DENSE | _MAMBA | _MOE,
    "zamba2": _DENSE | _MAMBA2 | {"latent ranks"},  # its adapters
    "qwen3_next": _DENSE | _MAMBA2 | _MOE,  # linear attention has the axes of a Mamba-2 scan
}
