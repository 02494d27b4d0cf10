"""The tiny models that everybody is asked to prune, peers and fxcompress alike, as checkpoints: all read the same.

Sizes let every request be carried out exactly: half of the query heads of a KV head, and of the SSM heads of a group,
are whole numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import models

_DECODER = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_SSM = {"n_groups": 3, "chunk_size": 8, "expand": 2}
_BAMBA = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_n_groups": 3,
    "mamba_d_state": 7,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_MOE = {"moe_intermediate_size": 20, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "tie_word_embeddings": True},
    "qwen3": _DECODER,
    "qwen3_moe": {**_DECODER, **_MOE},
    "mamba2": {**_DECODER, **_SSM, "num_heads": 12, "head_dim": 8, "state_size": 7},
    "nemotron_h": {
        **_DECODER,
        **_SSM,
        "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp"],
        "num_hidden_layers": 5,
        "mamba_num_heads": 12,
        "mamba_head_dim": 10,
        "ssm_state_size": 7,
    },
    "bamba": {**_DECODER, **_BAMBA, "num_hidden_layers": 4, "attn_layer_indices": [2]},
    "falcon_h1": {**_DECODER, **_BAMBA, "mamba_d_ssm": 96},
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **CONFIGS[name])
    return models.perturb(AutoModelForCausalLM.from_config(config).eval())


def write(name: str, folder: Path) -> Path:
    """Save an original with its probe and a tokenizer, and return its directory."""
    out = folder / name
    model(name).save_pretrained(out)
    _tokenizer().save_pretrained(out)
    ids = {"probe": models.ids(3, 17, seed=1), "calibration": models.ids(16, 32, seed=2)}
    save_file(ids, out / "probe.safetensors")
    return out


def _tokenizer() -> PreTrainedTokenizerFast:
    """A word a token: llm-compressor wants a tokenizer beside the model, even for data that are ids already."""
    words = {f"w{i}": i for i in range(_DECODER["vocab_size"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0")
