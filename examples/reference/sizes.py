"""What is trained: three architectures of about the same cost, small for a CPU and large for a GPU.

The hybrid has the order of Nemotron-H (arXiv 2504.03624): FFNs between Mamba-2 layers, an attention before an FFN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

MODELS = ("hybrid", "mamba2", "llama")
PATTERN = "M-M-M*-M-"
KINDS = {"M": "mamba", "-": "mlp", "*": "attention"}


@dataclass(frozen=True)
class Size:
    """Sizes of the models, and how long they are trained on what."""

    width: int
    ffn: int  # neurons of an FFN of the hybrid
    gated_ffn: int  # and of the Llama, whose neurons have three weights an input and not two
    ssm_heads: int  # in 4 groups; together twice as wide as the model
    state: int
    heads: int  # query heads, two to a KV head
    vocabulary: int
    length: int  # of a sequence, in tokens
    rows: int  # sequences of a step
    steps: int
    trial_steps: int  # of the runs that compare learning rates; as many as ``steps``: the best of them is the model
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    chunk: int = 32
    mixers: int = 8  # layers of the Mamba-2
    blocks: int = 5  # layers of the Llama


SIZES = {
    "small": Size(160, 480, 400, 16, 16, 4, 2048, 256, 16, 10_200, 1020),
    "large": Size(320, 960, 800, 20, 32, 10, 8192, 512, 64, 4000, 4000, chunk=64),
    "tiny": Size(32, 48, 40, 16, 8, 4, 300, 32, 4, 12, 6, chunk=8, mixers=2, blocks=1),  # for tests
}


def build(model: str, size: Size) -> PreTrainedModel:
    """A model in float32 with random weights, the same for the same seed."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[model](size)), dtype=torch.float32)


def flops_per_token(model: PreTrainedModel, size: Size, context: float) -> int:
    """Of a forward pass, with so many tokens to attend to: products with matrices, attention, scans, convolutions.

    A multiply-add is two. While training, the context is half the length on average.
    """
    parameters = dict(model.named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if p.dim() == 2 and "embed" not in name)
    convolutions = [p for p in parameters.values() if p.dim() == 3]  # one in every Mamba-2 layer
    scans = len(convolutions) * 6 * 2 * size.width * size.state
    attention = sum(name.endswith("q_proj.weight") for name in parameters) * 4 * size.width * context
    return round(2 * matrices + 2 * sum(p.numel() for p in convolutions) + scans + attention)


def _common(size: Size) -> dict[str, Any]:
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return {"vocab_size": size.vocabulary, "hidden_size": size.width, "tie_word_embeddings": False, **tokens}


def _attention(size: Size) -> dict[str, Any]:
    heads = {"num_attention_heads": size.heads, "num_key_value_heads": size.heads // 2}
    return {**heads, "head_dim": size.width // size.heads, "max_position_embeddings": size.length}


def _hybrid(size: Size) -> dict[str, Any]:
    mamba = {"mamba_num_heads": size.ssm_heads, "mamba_head_dim": 2 * size.width // size.ssm_heads}
    scan = {"n_groups": 4, "ssm_state_size": size.state, "chunk_size": size.chunk}
    layers = {"layers_block_type": [KINDS[kind] for kind in PATTERN], "intermediate_size": size.ffn}
    return {"model_type": "nemotron_h", **_common(size), **_attention(size), **mamba, **scan, **layers}


def _mamba2(size: Size) -> dict[str, Any]:
    heads = {"num_heads": size.ssm_heads, "head_dim": 2 * size.width // size.ssm_heads, "expand": 2}
    scan = {"n_groups": 4, "state_size": size.state, "chunk_size": size.chunk}
    return {"model_type": "mamba2", **_common(size), **heads, **scan, "num_hidden_layers": size.mixers}


def _llama(size: Size) -> dict[str, Any]:
    layers = {"num_hidden_layers": size.blocks, "intermediate_size": size.gated_ffn}
    return {"model_type": "llama", **_common(size), **_attention(size), **layers}


CONFIGS = {"hybrid": _hybrid, "mamba2": _mamba2, "llama": _llama}
