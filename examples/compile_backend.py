"""Compile a compressed model: ``torch.compile`` knows the backend by name once fxcompress is installed.

Options and modes are Inductor's.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from rich import print
from transformers import LlamaConfig, LlamaForCausalLM

import fxcompress
from fxcompress.passes import PruneFFN

RATIO = 0.25
RUNS = 20
TINY = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4)


@torch.no_grad()
def milliseconds(model: Callable[..., Any], ids: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(RUNS):
        model(input_ids=ids)
    return (time.perf_counter() - started) / RUNS * 1e3


torch.manual_seed(0)
ids = torch.randint(TINY.vocab_size, (2, 32))
small = fxcompress.apply(LlamaForCausalLM(TINY), [PruneFFN(ratio=RATIO)])
compiled = torch.compile(small, backend="fxcompress")

with torch.no_grad():
    expected, got = small(input_ids=ids).logits, compiled(input_ids=ids).logits
error = float((expected - got).abs().max() / expected.abs().max())

print(small.report)
print(f"compiled against not compiled: error {error:.1e}")
print(f"milliseconds a run: {milliseconds(small, ids):.2f} as it is, {milliseconds(compiled, ids):.2f} compiled")
