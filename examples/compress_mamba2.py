"""Compress Mamba-2: fewer SSM heads, fewer channels in each, one layer less.

    heads (g r) -> (g r'): the same number from each of the g groups, because a group shares B and C

Mamba-2's config wants heads * head_dim == expand * hidden_size, which few results obey. The others are saved all the
same, and ``fxcompress.load`` reads them.
"""

import tempfile
from pathlib import Path

import torch
from rich import print
from transformers import Mamba2Config, Mamba2ForCausalLM

import fxcompress
from fxcompress.passes import PruneSSMChannels, PruneSSMHeads, RemoveLayers

HEADS = 0.25  # of the heads go
CHANNELS = 0.5  # of the channels of every head go
LAYERS = (1,)

TINY = Mamba2Config(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=4,
    num_heads=8,
    head_dim=16,
    n_groups=2,
    state_size=16,
    chunk_size=16,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

torch.manual_seed(0)
model = Mamba2ForCausalLM(TINY)
ids = torch.randint(TINY.vocab_size, (2, 24))

small = fxcompress.apply(
    model, [PruneSSMHeads(ratio=HEADS), PruneSSMChannels(ratio=CHANNELS), RemoveLayers(layers=LAYERS)]
)

with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    small.save_pretrained(Path(folder) / "small")
    again = fxcompress.load(Path(folder) / "small")
    same = torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)

print(small.report)
print("reloaded, the logits are the same:", same)
try:
    small.to_transformers()
except fxcompress.NotExpressible as refusal:
    print("no checkpoint of transformers:", refusal)
