"""One-shot weight pruning, and then distillation with the zeros held: how much comes back, and does the method matter?

python examples/experiments/sparse.py TEXT.txt HELD_OUT.txt
"""

from __future__ import annotations

import argparse
from typing import Any

import page
import torch
from lab import BATCH, CALIBRATION, PART, Lab, parser
from shapes import rate_of

import fxcompress
from fxcompress.passes import PruneWeights

TITLE = "Zeros in one shot, and distillation that keeps them"
PATTERNS: dict[str, dict[str, Any]] = {"2:4": {"pattern": "2:4"}, "70 %": {"sparsity": 0.7}}
METHODS = ("magnitude", "sparsegpt", "mrp")


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    rate, arms = rate_of(lab), []
    for pattern, how_much in PATTERNS.items():
        for method in METHODS:
            p = PruneWeights(method=method, **how_much)
            cells = lab.runs(f"{method} {pattern}", rate, lambda seed: recovered(lab, p, seed, rate))  # noqa: B023
            arms.append(page.Arm.of(f"{pattern}, {method}", cells, f"{cells[0]['zeros']:.1%}"))
    told = (
        f"`examples/experiments/sparse.py`: {lab.about()}. All its projections were pruned in one shot with"
        f" {CALIBRATION} rows of calibration, and distilled on {lab.tokens_of(PART):,} tokens with the zeros held:"
        f" every zero is one after training too. Forward KL alone, learning rate {rate:g}. Zeros: of what was pruned."
    )
    page.show(arguments.page, "sparse", TITLE, told, arms, ("zeros",), lab.bits_of_teacher())


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
    return {"before": lab.bits(student), "after": lab.bits(trained), "zeros": zeros}


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
