"""What should a student learn from: its teacher, the text, or both?

    python examples/experiments/losses.py TEXT.txt HELD_OUT.txt

The claim to check is Minitron's (arXiv 2407.14679): the teacher alone, by forward KL, is the best.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import PART, Lab, parser
from shapes import STUDENT, distilled, rate_of, sizes, student_of

from fxcompress import Objective

TITLE = "Forward KL, cross-entropy, or both"
BOTH = "both"


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    rate = rate_of(lab)
    runs = {"forward KL": (rate, lab.runs(STUDENT, rate, lambda seed: distilled(lab, STUDENT, seed, rate)))}
    for arm, learn in {"cross-entropy": by_text, BOTH: by_both}.items():
        best = lab.rate(arm, lambda rate: learn(lab, 0, rate))  # noqa: B023
        runs[arm] = best, lab.runs(arm, best, lambda seed: learn(lab, seed, best))  # noqa: B023
    arms = [page.Arm.of(arm, cells, f"{rate:g}") for arm, (rate, cells) in runs.items()]
    told = (
        f"`examples/experiments/losses.py`: {lab.about()}, and a student of {sizes(lab, STUDENT)}, trained on"
        f" {lab.tokens_of(PART):,} tokens at the best of three learning rates. With both, the two parts are kept"
        " equally large (Minitron's dynamic weight)."
    )
    page.show(arguments.page, "losses", TITLE, told, arms, ("learning rate",), lab.bits_of_teacher())


def by_text(lab: Lab, seed: int, rate: float) -> dict[str, Any]:
    student = student_of(lab, STUDENT, seed)
    return {"before": lab.bits(student), "after": lab.bits(lab.trained(student, seed, rate))}


def by_both(lab: Lab, seed: int, rate: float) -> dict[str, Any]:
    student = student_of(lab, STUDENT, seed)
    trained = lab.trained(student, seed, rate, teacher=lab.teacher, objective=Objective(ce="dynamic"))
    return {"before": lab.bits(student), "after": lab.bits(trained)}


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
