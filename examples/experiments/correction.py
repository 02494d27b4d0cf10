"""On text that the teacher was not made for, should it be trained on that text before it teaches?

    python examples/experiments/correction.py TEXT.txt HELD_OUT.txt OTHER.txt OTHER_HELD_OUT.txt

The claim to check is that of Minitron in practice (arXiv 2408.11796): a student that was pruned from the teacher as it
was learns more there from a teacher that was corrected first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import page
from lab import CHOOSING, PART, Lab, parser
from shapes import recipe, sizes, student_of
from transformers import PreTrainedModel

TITLE = "Teacher correction on text of another kind"
OTHER, JUDGED = "other_text", "other_held_out_text"
FIFTH = 0.2  # of the learning rate that the teacher was made with
CORRECTED, WAS, ALONE = "teacher corrected", "teacher as it was", "no teacher, the text alone"


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    teacher = corrected(lab)
    runs = {
        name: lab.runs(f"{name}, other text", lambda seed, rate: taught(lab, by, seed, rate), recipe(lab), FIFTH)  # noqa: B023
        for name, by in {CORRECTED: teacher, WAS: lab.teacher, ALONE: None}.items()
    }
    arms = [page.Arm.of(name, found.cells, f"{found.rate:g}") for name, found in runs.items()]
    was = lab.bits_of_teacher(JUDGED)
    became = lab.cell("corrected teacher", 0, lambda: {"after": lab.bits(teacher, JUDGED)}, FIFTH)["after"]
    told = (
        f"`examples/experiments/correction.py`: {lab.about()}; of {arguments.other_held_out_text.name} it has"
        f" {was:.4f}, and {became:.4f}, the line of the plot, after {lab.tokens_of(PART):,} tokens of"
        f" {arguments.other_text.name} ({lab.epochs_of(PART, OTHER):.1f} epochs) at a fifth of its learning rate. A"
        f" student of {sizes(lab)}, pruned from the teacher as it was by text of its own kind, was trained on as many"
        " tokens of that other text. One corrected teacher serves all seeds."
    )
    page.show(arguments.page, "correction", TITLE, told, arms, ("learning rate",), became)


def corrected(lab: Lab) -> PreTrainedModel:
    """The teacher after a little of the other text, made once."""
    folder = lab.output / f"corrected teacher, {lab.key(PART, FIFTH)}"
    if not folder.exists():
        model = lab.trained(lab.teacher, CHOOSING + 1, FIFTH * lab.taught[1], text=OTHER)
        beside = lab.output / "new corrected teacher"
        model.save_pretrained(beside)
        beside.rename(folder)
    return type(lab.teacher).from_pretrained(folder).eval()


def taught(lab: Lab, by: PreTrainedModel | None, seed: int, rate: float) -> dict[str, Any]:
    student = student_of(lab, seed)
    trained = lab.trained(student, seed, rate, teacher=by, text=OTHER)
    return {"before": lab.bits(student, JUDGED), **lab.judged(trained, JUDGED)}


if __name__ == "__main__":
    asked = parser(__doc__)
    asked.add_argument("other_text", type=Path, help="text of another kind")
    asked.add_argument("other_held_out_text", type=Path, help="more of that kind, to judge by")
    main(asked.parse_args())
