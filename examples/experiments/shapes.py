"""Half of the parameters by width, with and without SSM heads, by depth, or by both: which is best after distillation?

    python examples/experiments/shapes.py TEXT.txt HELD_OUT.txt

Of each way, the candidate with the lowest loss before training is trained, all with the same tokens against the same
teacher. The claim to check is Minitron-SSM's (arXiv 2504.11409, table 1): width with SSM heads, then width without
them, depth last.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import BATCH, CALIBRATION, PART, Lab, parser

import fxcompress
from fxcompress.recipe import Recipe

TITLE = "Half of the parameters: by width, SSM heads or depth"
KEPT = 0.5  # of all parameters, embedding and head with them
TRIALS = 48
WIDTH: dict[str, Any] = {"width": None, "ffn": None}
SSM: dict[str, Any] = {"ssm_heads": None, "ssm_channels": None}
WAYS: dict[str, dict[str, Any]] = {
    "width, SSM heads whole": WIDTH,
    "width with SSM heads": WIDTH | SSM,
    "depth": {"layers": None},
    "width and depth": WIDTH | SSM | {"layers": None},
}
STUDENT = "width with SSM heads"  # of the other experiments


def main(arguments: argparse.Namespace) -> None:
    lab = Lab.opened(arguments)
    rate, arms = rate_of(lab), []
    for way in WAYS:
        cells = lab.runs(way, rate, lambda seed: distilled(lab, way, seed, rate))  # noqa: B023
        arms.append(page.Arm.of(way, cells, sizes(lab, way), f"{cells[0]['parameters']:,}"))
    told = (
        f"`examples/experiments/shapes.py`: {lab.about()}, cut to at most {KEPT:.0%} of its parameters. Of {TRIALS}"
        " candidates of each way, the one with the lowest loss before training was distilled on"
        f" {lab.tokens_of(PART):,} tokens, 1/{round(1 / PART)} of the teacher's: forward KL alone, learning rate"
        f" {rate:g}."
    )
    page.show(arguments.page, "shapes", TITLE, told, arms, ("sizes", "parameters"), lab.bits_of_teacher())


def candidate(lab: Lab, way: str) -> dict[str, Any]:
    """What the search of a way found: a recipe, and the sizes that it leads to."""
    return lab.cell(f"search, {way}", 0, lambda: searched(lab, way))


def searched(lab: Lab, way: str) -> dict[str, Any]:
    most = round(KEPT * lab.teacher.num_parameters())
    found = fxcompress.search(
        lab.teacher,
        [f"parameters<={most}", f"parameters>={round(0.9 * most)}"],
        WAYS[way],
        calibration=lab.rows(1000, CALIBRATION).split(BATCH),
        profile="transformers",
        layer_order="kl",
        trials=TRIALS,
        best=1,
    )
    return {"recipe": Recipe(found.best[0].passes).to_yaml(), "sizes": dict(found.best[0].trial.sizes)}


def rate_of(lab: Lab) -> float:
    """The learning rate of distillations, chosen with the student of the other experiments."""
    return lab.rate(STUDENT, lambda rate: distilled(lab, STUDENT, 0, rate))


def student_of(lab: Lab, way: str, seed: int) -> Any:
    return lab.compressed(Recipe.from_yaml(candidate(lab, way)["recipe"]).passes(), seed)


def distilled(lab: Lab, way: str, seed: int, rate: float) -> dict[str, Any]:
    """Cut, judged, trained against the teacher, judged."""
    student = student_of(lab, way, seed)
    trained = lab.trained(student, seed, rate, teacher=lab.teacher)
    return {"before": lab.bits(student), "after": lab.bits(trained), "parameters": student.num_parameters()}


def sizes(lab: Lab, way: str) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in candidate(lab, way)["sizes"].items())


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
