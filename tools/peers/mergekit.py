"""mergekit 0.1.5: slices of layers from file to file; no model is ever built."""

from __future__ import annotations

import json
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from peers import cases


def work(case: str, original: Path, out: Path) -> None:
    assert case == "layer"
    config = json.loads((original / "config.json").read_text())
    count = config.get("num_hidden_layers") or len(config["layers_block_type"])
    parts = [[0, cases.MIDDLE], [cases.MIDDLE + 1, count]]
    slices = [{"sources": [{"model": str(original), "layer_range": part}]} for part in parts]
    merge = MergeConfiguration.model_validate({"slices": slices, "merge_method": "passthrough", "dtype": "float32"})
    run_merge(merge, str(out / "saved"), MergeOptions(copy_tokenizer=False, quiet=True))


if __name__ == "__main__":
    cases.main(work)
