"""One-shot weight pruning, and then distillation with the zeros held: how much comes back, and does the method matter?

python examples/experiments/sparse.py TEXT.txt HELD_OUT.txt
"""

from __future__ import annotations

import argparse
from typing import Any

import page
import torch
from lab import BATCH, CALIBRATION, PART, Lab, parser

import fxcompress
from fxcompress.passes import PruneWeights

TITLE = "Zeros in one shot, and distillation that keeps them"
PATTERNS: dict[str, dict[str, Any]] = {"2:4": {"pattern": "2:4"}, "70 %": {"sparsity": 0.7}}
METHODS = ("magnitude", "mrp")


def main(arguments: argparse.Namespace) -> None:
    lab, arms = Lab.opened(arguments), []
    for pattern, how_much in PATTERNS.items():
        for method in METHODS:
            p = PruneWeights(method=method, **how_much)
            runs = lab.runs(f"{method} {pattern}", lambda seed, rate: recovered(lab, p, seed, rate), p.options())  # noqa: B023
            arms.append(
                page.Arm.of(f"{pattern}, {method}", runs.cells, f"{runs.cells[0]['zeros']:.1%}", f"{runs.rate:g}")
            )
    told = (
        f"`examples/experiments/sparse.py`: {lab.about()}. All its projections were pruned in one shot with"
        f" {CALIBRATION} rows of calibration, and distilled by forward KL alone on {lab.tokens_of(PART):,} tokens with"
        " the zeros held: each of them is one after training too. Zeros: of the pruned matrices."
    )
    page.show(arguments.page, "sparse", TITLE, told, arms, ("zeros", "learning rate"), lab.bits_of_teacher())


def recovered(lab: Lab, p: PruneWeights, seed: int, rate: float) -> dict[str, Any]:
    """Pruned, judged, trained, judged. Raises SystemExit if a zero was lost."""
    rows = lab.rows(1000 + seed, CALIBRATION).split(BATCH)
    small = fxcompress.apply(lab.teacher, [p], calibration=rows)
    student = small.to_transformers()
    trained = lab.trained(student, seed, rate, teacher=lab.teacher)
    after = dict(trained.named_parameters())
    pruned = {name: w for name, w in student.named_parameters() if w.dim() == 2 and (w == 0).any()}
    if any((after[name][w == 0] != 0).any() for name, w in pruned.items()):
        raise SystemExit(f"{p}: training lost zeros")
    zeros = sum(int(torch.count_nonzero(w == 0)) for w in pruned.values()) / sum(w.numel() for w in pruned.values())
    return {"before": lab.bits(student), "zeros": zeros, **lab.judged(trained)}


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
