"""How much text is a pruned and distilled model worth? The same shape, trained from random weights, needs how much?

    python examples/experiments/tokens.py TEXT.txt HELD_OUT.txt

The claim to check is Minitron's (arXiv 2407.14679): up to 40 times fewer tokens than from scratch.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import PART, Lab, parser
from shapes import STUDENT, distilled, rate_of, sizes, student_of
from transformers import AutoModelForCausalLM

TITLE = "Pruned and distilled, or trained from scratch"
PARTS = {"1/40": 1 / 40, "1/10": 1 / 10, "all": 1.0}  # of the teacher's tokens
ONCE = "all"  # takes an hour and more: one seed, at the rate that was best for the part before it


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    rate = rate_of(lab)
    cells = lab.runs(STUDENT, rate, lambda seed: distilled(lab, STUDENT, seed, rate))
    arms = [page.Arm.of("pruned, distilled", cells, f"{lab.tokens_of(PART):,}", f"{rate:g}")]
    for name, part in PARTS.items():
        arm = f"from scratch, {name} of the tokens"
        if name != ONCE:
            rate = lab.rate(file_name(arm), lambda rate: scratch(lab, 0, rate, part))  # noqa: B023
        seeds = 1 if name == ONCE else None
        cells = lab.runs(file_name(arm), rate, lambda seed: scratch(lab, seed, rate, part), seeds)  # noqa: B023
        arms.append(page.Arm.of(arm, cells, f"{lab.tokens_of(part):,}", f"{rate:g}"))
    told = (
        f"`examples/experiments/tokens.py`: {lab.about()}, and a student of {sizes(lab, STUDENT)}. Pruned and distilled"
        " (forward KL alone), or the same shape from random weights by cross-entropy, each at the best of three"
        " learning rates, with the same optimiser and schedule."
    )
    page.show(arguments.page, "tokens", TITLE, told, arms, ("tokens", "learning rate"), lab.bits_of_teacher())


def scratch(lab: Lab, seed: int, rate: float, part: float) -> dict[str, Any]:
    """The student's shape with random weights, trained on text alone."""
    model = AutoModelForCausalLM.from_config(student_of(lab, STUDENT, seed).config)
    return {"after": lab.bits(lab.trained(model, seed, rate, part))}


def file_name(arm: str) -> str:
    return arm.replace("/", "th ")


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
