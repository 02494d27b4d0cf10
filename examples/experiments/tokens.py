"""How much text is a pruned and distilled model worth? The same shape, trained from random weights, needs how much?

    python examples/experiments/tokens.py TEXT.txt HELD_OUT.txt

The claim to check is Minitron's (arXiv 2407.14679): up to 40 times fewer tokens than from scratch.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import PART, Lab, parser
from shapes import recipe, sizes, student_of, students
from transformers import AutoModelForCausalLM

TITLE = "Pruned and distilled, or trained from scratch"
PARTS = {"a 40th": 1 / 40, "a 10th": 1 / 10}  # of the teacher's tokens
ALL = "all"  # takes an hour and more: one seed, at the best learning rate of the part before it


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    runs = students(lab)
    arms = [page.Arm.of("pruned, distilled", runs.cells, f"{lab.tokens_of(PART):,}", f"{runs.rate:g}")]
    for name, part in PARTS.items():
        runs = lab.runs(f"scratch, {name}", lambda seed, rate: scratch(lab, seed, rate, part), recipe(lab), part)  # noqa: B023
        arms.append(page.Arm.of(f"from scratch, {name}", runs.cells, f"{lab.tokens_of(part):,}", f"{runs.rate:g}"))
    everything = lab.runs_at(
        runs.rate, f"scratch, {ALL}", lambda seed, rate: scratch(lab, seed, rate, 1.0), recipe(lab), 1.0, seeds=1
    )
    arms.append(page.Arm.of(f"from scratch, {ALL}", everything.cells, f"{lab.tokens_of(1.0):,}", f"{runs.rate:g}"))
    told = (
        f"`examples/experiments/tokens.py`: {lab.about()}, and a student of {sizes(lab)}. Pruned and distilled by"
        " forward KL alone, or the same shape from random weights by cross-entropy, with parts of the teacher's tokens,"
        " the same optimiser and schedule. With all of them it was trained once, at the rate of the part before."
    )
    page.show(arguments.page, "tokens", TITLE, told, arms, ("tokens", "learning rate"), lab.bits_of_teacher())


def scratch(lab: Lab, seed: int, rate: float, part: float) -> dict[str, Any]:
    """The student's shape with random weights, trained on text alone."""
    model = AutoModelForCausalLM.from_config(student_of(lab, seed).config)
    return lab.judged(lab.trained(model, seed, rate, part))


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
