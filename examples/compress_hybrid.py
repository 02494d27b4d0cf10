"""Compress a hybrid of Mamba-2, attention and FFN layers: each pass takes the layers that have what it cuts."""

import torch
from rich import print
from transformers import NemotronHConfig, NemotronHForCausalLM

import fxcompress
from fxcompress.passes import PruneAttentionHeads, PruneFFN, PruneSSMHeads

SSM_HEADS = 0.25  # of the SSM heads go, the same number from every group
KV_HEADS = 0.5  # of the KV heads go, with their query heads
FFN_WIDTH = 96  # neurons that are left in every FFN
NEW_TOKENS = 8

TINY = NemotronHConfig(
    vocab_size=256,
    hidden_size=64,
    layers_block_type=["mamba", "mlp", "mamba", "attention", "mlp"],
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    mamba_num_heads=8,
    mamba_head_dim=16,
    n_groups=2,
    ssm_state_size=16,
    chunk_size=16,
)

torch.manual_seed(0)
model = NemotronHForCausalLM(TINY)
ids = torch.randint(TINY.vocab_size, (2, 24))

small = fxcompress.apply(
    model,
    [PruneSSMHeads(ratio=SSM_HEADS), PruneAttentionHeads(ratio=KV_HEADS, kv=True), PruneFFN(size=FFN_WIDTH)],
)
out = small.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False)

print(small.report)
print("generated:", out[:, ids.shape[1] :].tolist())
