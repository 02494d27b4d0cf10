"""llm-compressor's one-shot weight pruning of a checkpoint by given token ids; runs in the peer's own environment.

    python weights.py MODEL IDS.safetensors OUT sparsegpt|wanda SPARSITY STRUCTURE

STRUCTURE is "2:4" or "0:0", its word for none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def main(model: str, ids: str, out: str, method: str, sparsity: str, structure: str) -> None:
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    rows = load_file(ids)["ids"].tolist()
    oneshot(
        model=original,
        dataset=Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]),
        recipe=MODIFIERS[method](
            sparsity=float(sparsity), mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"]
        ),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
    )
    original.save_pretrained(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
