"""What should a student learn from: its teacher, the text, or both?

    python examples/experiments/losses.py TEXT.txt HELD_OUT.txt

The claim to check is Minitron's (arXiv 2407.14679): the teacher alone, by forward KL, is the best.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import PART, Lab, parser
from shapes import recipe, sizes, student_of, students

from fxcompress import Objective

TITLE = "Forward KL, cross-entropy, or both"
OTHERS: dict[str, float | None] = {"cross-entropy": None, "forward KL + cross-entropy": 1.0}  # weight of the text's


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    runs = {"forward KL": students(lab)}
    for arm, ce in OTHERS.items():
        runs[arm] = lab.runs(arm, lambda seed, rate: learnt(lab, ce, seed, rate), recipe(lab))  # noqa: B023
    arms = [page.Arm.of(arm, found.cells, f"{found.rate:g}") for arm, found in runs.items()]
    told = (
        f"`examples/experiments/losses.py`: {lab.about()}, and a student of {sizes(lab)}, trained on"
        f" {lab.tokens_of(PART):,} tokens of the teacher's own text. Both are added up as they are, in nats a token."
    )
    page.show(arguments.page, "losses", TITLE, told, arms, ("learning rate",), lab.bits_of_teacher())


def learnt(lab: Lab, ce: float | None, seed: int, rate: float) -> dict[str, Any]:
    """Trained against the teacher with so much cross-entropy besides; None: by cross-entropy alone."""
    student = student_of(lab, seed)
    teaching = {} if ce is None else {"teacher": lab.teacher, "objective": Objective(ce=ce)}
    return {"before": lab.bits(student), **lab.judged(lab.trained(student, seed, rate, **teaching))}


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
