"""Tiny models on which the laws can see.

Sizes differ from one another, so that a mixed-up dim shows. Weights are drawn at 1/sqrt(fan_in), and norms, biases
and A are perturbed: at the default initialisation of a tiny model a wrong rewrite moves the logits by 1e-7.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fxcompress import Program, capture

_COMMON = {"vocab_size": 96, "hidden_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ATTENTION = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
_MAMBA2 = {"mamba_num_heads": 12, "mamba_head_dim": 10, "n_groups": 3, "ssm_state_size": 7, "chunk_size": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, **_ATTENTION, "num_hidden_layers": 3, "intermediate_size": 80, "tie_word_embeddings": True},
    "qwen3": {**_COMMON, **_ATTENTION, "num_hidden_layers": 3, "intermediate_size": 80},
    "mamba": {**_COMMON, "num_hidden_layers": 3, "state_size": 7, "expand": 2, "conv_kernel": 4, "time_step_rank": 5},
    "mamba2": {
        **_COMMON,
        "num_hidden_layers": 3,
        "num_heads": 12,
        "head_dim": 8,
        "n_groups": 3,
        "state_size": 7,
        "expand": 2,
        "chunk_size": 8,
    },
    "nemotron_h": {
        **_COMMON,
        **_ATTENTION,
        **_MAMBA2,
        "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp"],
        "intermediate_size": 80,
    },
    "nemotron_h_moe": {
        **_COMMON,
        "model_type": "nemotron_h",
        **_ATTENTION,
        **_MAMBA2,
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "intermediate_size": 80,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 20,
        "moe_shared_expert_intermediate_size": 36,
    },
}
FAMILIES = tuple(CONFIGS)  # those that every test of the core runs on

_DECODER = {**_COMMON, **_ATTENTION, "num_hidden_layers": 3, "intermediate_size": 80}
_FULL_HEADS = {**_COMMON, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 128}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_BAMBA = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_n_groups": 3,
    "mamba_d_state": 7,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

CONFIGS |= {
    "mistral": {**_DECODER, "sliding_window": 7},
    "qwen2": _DECODER,
    "gemma2": {**_DECODER, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "gemma3": {**_DECODER, "model_type": "gemma3_text", "sliding_window": 7, "query_pre_attn_scalar": 8},
    "gpt2": {**_COMMON, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128, "n_inner": 80},
    "opt": {**_FULL_HEADS, "ffn_dim": 80, "word_embed_proj_dim": 48},
    "gpt_neox": {**_FULL_HEADS, "intermediate_size": 80},
    "mixtral": {**_DECODER, "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": {**_DECODER, **_MOE},
    "deepseek_v3": {
        **_FULL_HEADS,
        "num_key_value_heads": 6,
        "intermediate_size": 80,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": 20,
        "kv_lora_rank": 28,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "n_shared_experts": 1,
    },
    "bamba": {**_DECODER, **_BAMBA, "attn_layer_indices": [1]},
    "jamba": {
        **_DECODER,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "mamba_d_state": 7,
        "mamba_dt_rank": 5,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        **_FULL_HEADS,
        "num_hidden_layers": 4,
        "num_key_value_heads": 6,
        "intermediate_size": 80,
        "mamba_d_state": 7,
        "mamba_ngroups": 3,
        "n_mamba_heads": 12,
        "mamba_headdim": 8,
        "mamba_expand": 2,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
    },
    "falcon_h1": {**_DECODER, **_BAMBA, "mamba_d_ssm": 96},
    "nemotron_h_latent": {
        **CONFIGS["nemotron_h_moe"],
        "model_type": "nemotron_h",
        "moe_latent_size": 28,
        "moe_intermediate_size": 32,
    },
    "qwen3_next": {
        **_DECODER,
        **_MOE,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 6,
        "linear_num_key_heads": 3,
        "linear_key_head_dim": 7,
        "linear_value_head_dim": 10,
        "shared_expert_intermediate_size": 36,
        "decoder_sparse_step": 1,
    },
}
ALL = tuple(CONFIGS)  # every family


def config(name: str) -> Any:
    values = dict(CONFIGS[name])
    return AutoConfig.for_model(values.pop("model_type", name), **values)


def tiny(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of a family with weights that matter, in float32 and eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name)).eval()
    return perturb(model, seed)


def perturb(model: nn.Module, seed: int = 0) -> Any:
    """Draw matrices at 1/sqrt(fan_in) and move vectors (norms, biases, A, D) and buffers off their initial values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.dim() >= 2:
            parameter.data = noise / parameter.shape[-1] ** 0.5
        else:
            parameter.data = parameter.data + 0.3 * noise
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():  # a router's biases, statistics of a norm
            buffer += 0.3 * torch.rand(buffer.shape, generator=generator)
    return model


def ids(batch: int, length: int, vocabulary: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask whose rows begin with 0, 2, 4, ... padding tokens."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return ids(batch, length) * mask, mask


@functools.cache
def captured(name: str, dtype: torch.dtype = torch.float64) -> Program:
    """The tiny model of a family as a program, captured once; passes work on clones of it."""
    if dtype == torch.float64:
        return captured(name, torch.float32).in_float64()
    return capture(tiny(name))
