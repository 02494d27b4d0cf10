"""On text that the teacher was not made for, should it be trained on that text before it teaches?

    python examples/experiments/correction.py TEXT.txt HELD_OUT.txt OTHER.txt OTHER_HELD_OUT.txt

The claim to check is that of Minitron in practice (arXiv 2408.11796): a teacher that was corrected on the text teaches
better there, whether the student was pruned from it or from the original.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import page
from lab import PART, Lab, parser
from shapes import STUDENT, rate_of, sizes, student_of
from transformers import PreTrainedModel

TITLE = "Teacher correction on text of another kind"
OTHER, JUDGED = "other_text", "other_held_out_text"
FIFTH = 0.2  # of the learning rate that the teacher was made with
CORRECTION = PART  # of the teacher's tokens
NONE, CORRECTED, ALONE = "teacher as it was", "teacher corrected", "no teacher, the text alone"


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    rate = rate_of(lab)
    teacher = corrected(lab)
    runs = {
        name: lab.runs(f"{name}, other text", rate, lambda seed: taught(lab, seed, rate, by))  # noqa: B023
        for name, by in {NONE: lab.teacher, CORRECTED: teacher, ALONE: None}.items()
    }
    arms = [page.Arm.of(name, cells) for name, cells in runs.items()]
    was, became = (
        lab.bits_of_teacher(JUDGED),
        lab.cell("corrected teacher", 0, lambda: {"after": lab.bits(teacher, JUDGED)})["after"],
    )
    told = (
        f"`examples/experiments/correction.py`: {lab.about()}; on"
        f" {arguments.other_held_out_text.name} it has {was:.4f},"
        f" and {became:.4f} after {lab.tokens_of(CORRECTION):,} tokens of {arguments.other_text.name} at a fifth of its"
        f" learning rate. A student of {sizes(lab, STUDENT)}, pruned from the teacher as it was, was trained on"
        f" {lab.tokens_of(PART):,} tokens of that text, learning rate {rate:g}, and judged on the same kind of text."
    )
    page.show(arguments.page, "correction", TITLE, told, arms, (), became)


def corrected(lab: Lab) -> PreTrainedModel:
    """The teacher after a little of the other text, made once."""
    folder = lab.output / "corrected teacher"
    if not folder.exists():
        rate = FIFTH * lab.taught[1]
        model = lab.trained(lab.teacher, 0, rate, CORRECTION, text=OTHER)
        beside = lab.output / "new corrected teacher"
        model.save_pretrained(beside)
        beside.rename(folder)
    return type(lab.teacher).from_pretrained(folder).eval()


def taught(lab: Lab, seed: int, rate: float, by: PreTrainedModel | None) -> dict[str, Any]:
    student = student_of(lab, STUDENT, seed)
    trained = lab.trained(student, seed, rate, teacher=by, text=OTHER)
    return {"before": lab.bits(student, JUDGED), "after": lab.bits(trained, JUDGED)}


if __name__ == "__main__":
    asked = parser(__doc__)
    asked.add_argument("other_text", type=Path, help="text of another kind")
    asked.add_argument("other_held_out_text", type=Path, help="more of that kind, to judge by")
    main(asked.parse_args())
