"""Compress a Transformer: narrower FFNs, fewer KV heads, one layer less; the result is an ordinary checkpoint.

    python examples/compress_transformer.py [directory of a checkpoint]

Without a directory the model is a tiny one with random weights.
"""

import sys
import tempfile
from pathlib import Path

import torch
from rich import print
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import fxcompress
from fxcompress.passes import PruneAttentionHeads, PruneFFN, RemoveLayers

FFN = 0.25  # of the neurons go
KV_HEADS = 0.5  # of the KV heads go, with their query heads
LAYERS = (-2,)
SAMPLES, LENGTH = 8, 32  # of calibration

TINY = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    bos_token_id=1,
    eos_token_id=2,
)

torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else LlamaForCausalLM(TINY)
ids = torch.randint(model.config.vocab_size, (SAMPLES, LENGTH))  # of a real model: ids of text it should do well on

small = fxcompress.apply(
    model,
    [
        PruneFFN(ratio=FFN, score="activation"),
        PruneAttentionHeads(ratio=KV_HEADS, kv=True),
        RemoveLayers(layers=LAYERS),
    ],
    calibration=ids,
)

with tempfile.TemporaryDirectory() as folder:
    small.save_pretrained(Path(folder) / "small")
    again = AutoModelForCausalLM.from_pretrained(Path(folder) / "small")

print(small.report)
print("reloaded by transformers:", again.config)
