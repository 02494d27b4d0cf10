"""llm-compressor 0.14: one call with a recipe; experts by REAP, 2:4 masks by SparseGPT. Weights stay dense on disk."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import REAPPruningModifier, SparseGPTModifier
from peers import cases

_RECIPES = {
    "experts": lambda: REAPPruningModifier(sparsity=cases.HALF),
    "two_of_four": lambda: SparseGPTModifier(
        sparsity=cases.HALF, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"]
    ),
}


def work(case: str, original: Path, out: Path) -> None:
    model = cases.load(original)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in cases.calibration(original).tolist()]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=_RECIPES[case](),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]["input_ids"]),
    )
    cases.record(model, original, out)


if __name__ == "__main__":
    cases.main(work)
