"""fxcompress, with no arguments but the amount; judged by the same files as everybody."""

from __future__ import annotations

from pathlib import Path

import torch
from peers import cases

import fxcompress
from fxcompress import passes


def work(case: str, original: Path, out: Path) -> None:
    model = cases.load(original)
    small = fxcompress.apply(model, _passes(case), calibration=cases.calibration(original))
    state = small.program.state
    tied = "lm_head.weight" not in state
    cases.write_facts(out, parameters=sum(p.numel() for p in small.parameters()), tied=tied)
    with torch.no_grad():
        cases.write_memory(out, small(input_ids=cases.probe(original)).logits, state)
    small.save_pretrained(out / "saved")


def _passes(case: str) -> list[fxcompress.pipeline.Pass]:
    half = cases.HALF
    return {
        "experts": [passes.PruneExperts(ratio=half)],
        "heads_ffn": [passes.PruneAttentionHeads(ratio=half), passes.PruneFFN(ratio=half)],
        "width": [passes.PruneEmbedding(ratio=half)],
        "ssm_heads": [passes.PruneSSMHeads(ratio=half)],
        "layer": [passes.RemoveLayers(layers=(cases.MIDDLE,))],
    }[case]


if __name__ == "__main__":
    cases.main(work)
