"""Half of the width of a tiny model with Torch-Pruning, in a process of its own: prints what it says, in one line.

.venv/bin/python tools/peer_torch_pruning.py FAMILY
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
sys.path.append(str(ROOT / ".venv" / "peers"))

import torch_pruning as tp  # noqa: E402

from tests import models  # noqa: E402


def main(family: str) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model = models.tiny(family)
    model.config.use_cache = False
    before = sum(p.numel() for p in model.parameters())
    try:
        pruner = tp.pruner.BasePruner(
            model,
            models.ids(2, 16),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[model.lm_head],
            output_transform=lambda out: out.logits,
        )
        pruner.step()
        model(models.ids(2, 16))
    except Exception as error:  # whatever it is, it is the result
        print(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        return
    print(f"{before} -> {sum(p.numel() for p in model.parameters())} parameters, and the model runs")


if __name__ == "__main__":
    main(sys.argv[1])
