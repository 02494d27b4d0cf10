"""Torch-Pruning 1.6.1: groups by tracing autograd; the user says what a head is and repairs the config.

``NAME-plain`` is the pruner as its README calls it. ``NAME`` is the recipe of its LLM example: a table of heads,
``prune_num_heads``, no head dims, and a config patched from the new shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch_pruning as tp
from peers import cases
from torch import nn

# The outputs of these are not what a case is about: their width stays.
_KEPT = {
    "heads_ffn": ("o_proj", "down_proj", "lm_head"),
    "width": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"),
    "ssm_heads": ("out_proj", "o_proj", "down_proj", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"),
    "experts": ("o_proj", "down_proj", "q_proj", "k_proj", "v_proj", "lm_head"),
}


def work(case: str, original: Path, out: Path) -> None:
    model = cases.load(original)
    case, _, plain = case.partition("-")
    ignored = [m for name, m in model.named_modules() if name.rpartition(".")[2] in _KEPT[case]]
    expert = {} if plain else _expert(model)
    pruner = tp.pruner.BasePruner(
        model,
        cases.probe(original),
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        pruning_ratio=cases.HALF,
        ignored_layers=ignored,
        output_transform=lambda out: out.logits,
        **expert,
    )
    pruner.step()
    if not plain:
        _repair(model)
    cases.record(model, original, out)


def _expert(model: Any) -> dict[str, Any]:
    heads: dict[nn.Module, int] = {}
    for name, m in model.named_modules():
        if name.endswith("q_proj"):
            heads[m] = model.config.num_attention_heads
        elif name.endswith(("k_proj", "v_proj")):
            heads[m] = model.config.num_key_value_heads
    return {"num_heads": heads, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": cases.HALF}


def _repair(model: Any) -> None:
    """The config as the new shapes ask for it: what the example leaves to its user."""
    config, head = model.config, getattr(model.config, "head_dim", None)
    config.hidden_size = model.get_input_embeddings().weight.shape[1]
    for name, m in model.named_modules():
        if name.endswith("self_attn") and head:
            config.num_attention_heads = m.q_proj.out_features // head
            config.num_key_value_heads = m.k_proj.out_features // head
            m.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        elif name.endswith("mlp") and hasattr(m, "gate_proj"):
            config.intermediate_size = m.gate_proj.out_features


if __name__ == "__main__":
    cases.main(work)
