"""kvpress 0.5.5: entries of the KV cache are dropped after the prompt, one press for all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from kvpress import KnormPress
from peers import cases


def work(case: str, original: Path, out: Path) -> None:
    assert case == "kv"
    model = cases.load(original)
    model.config.use_cache = True
    ids = cases.probe(original)[:1, :16]
    with torch.no_grad(), KnormPress(compression_ratio=cases.HALF)(model):
        result = model(input_ids=ids, use_cache=True)
    cases.write_facts(out, prompt=ids.shape[1], kept=_lengths(result.past_key_values))


def _lengths(cache: Any) -> list[int]:
    """Tokens in the cache of every layer that has keys."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers] if hasattr(cache, "layers") else cache.key_cache
    return [k.shape[2] for k in keys if isinstance(k, torch.Tensor) and k.dim() == 4]


if __name__ == "__main__":
    cases.main(work)
