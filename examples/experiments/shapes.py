"""Half of the layers' parameters by width, with SSM mixers or not, by depth, or by both: which is best once trained?

    python examples/experiments/shapes.py TEXT.txt HELD_OUT.txt

Of each way, the candidate with the lowest loss before training is trained, all with the same tokens against the same
teacher, a hybrid. The claim to check is Minitron-SSM's (arXiv 2504.11409, table 1): width with SSM first, depth
last. Embedding and head are left out of the count: they are a third of a small model, and depth cannot cut them.
"""

from __future__ import annotations

import argparse
from typing import Any

import page
from lab import BATCH, CALIBRATION, PART, Lab, Runs, parser

import fxcompress
from fxcompress.memory import Footprint
from fxcompress.recipe import Recipe

TITLE = "Half of the layers' parameters: by width, SSM mixers or depth"
KEPT = 0.5
TRIALS = 64
WIDTH, SSM = ("width", "ffn"), ("ssm_heads", "ssm_channels")
WAYS = {
    "width, SSM mixers whole": WIDTH,
    "width with SSM mixers": (*WIDTH, *SSM),
    "depth": ("layers",),
    "width and depth": (*WIDTH, *SSM, "layers"),
}
STUDENT = "width with SSM mixers"  # of the other experiments


def main(arguments: argparse.Namespace) -> None:
    lab, arms = Lab.opened(arguments), []
    for way in WAYS:
        found, runs = candidate(lab, way), students(lab, way)
        facts = sizes(lab, way), str(found["tried"]), f"{runs.cells[0]['parameters']:,}", f"{runs.rate:g}"
        arms.append(page.Arm.of(way, runs.cells, *facts))
    told = (
        f"`examples/experiments/shapes.py`: {lab.about()}, cut to at most {KEPT:.0%} of its parameters without"
        f" embedding and head. Of the candidates, at most the {TRIALS} largest of each way, the one with the lowest"
        f" loss on the calibration rows was distilled on {lab.tokens_of(PART):,} tokens, 1/{round(1 / PART)} of the"
        " teacher's, by forward KL alone. One candidate of each way: what another one would give is not in the spread."
    )
    facts = ("sizes", "tried", "parameters", "learning rate")
    page.show(arguments.page, "shapes", TITLE, told, arms, facts, lab.bits_of_teacher())


def candidate(lab: Lab, way: str) -> dict[str, Any]:
    """What the search of a way found: a recipe, the sizes that it leads to, how many were tried."""
    return lab.cell(f"search, {way}", 0, lambda: searched(lab, space(lab, way)), space(lab, way), KEPT, TRIALS)


def space(lab: Lab, way: str) -> dict[str, Any]:
    """Sizes in eighths of the teacher's; SSM heads are as many in each group; of layers any number."""
    config = lab.teacher.config
    whole = {
        "width": config.hidden_size,
        "ffn": config.intermediate_size,
        "ssm_heads": config.mamba_num_heads,
        "ssm_channels": config.mamba_head_dim,
    }
    eighths = {axis: sorted({size * k // 8 for k in range(4, 9)}) for axis, size in whole.items()}
    eighths["ssm_heads"] = [heads for heads in eighths["ssm_heads"] if heads % config.n_groups == 0]
    eighths["layers"] = list(range(1, config.num_hidden_layers))
    if way != "depth":
        eighths["layers"].append(config.num_hidden_layers)
    return {axis: eighths[axis] for axis in WAYS[way]}


def searched(lab: Lab, sizes: dict[str, Any]) -> dict[str, Any]:
    most = KEPT * Footprint.of(fxcompress.capture(lab.teacher)).non_embedding
    found = fxcompress.search(
        lab.teacher,
        f"non_embedding<={int(most)}",
        sizes,
        calibration=lab.rows(1000, CALIBRATION).split(BATCH),
        profile="transformers",
        layer_order="kl",
        trials=TRIALS,
        best=1,
    )
    best = found.best[0]
    return {"recipe": Recipe(best.passes).to_yaml(), "sizes": dict(best.trial.sizes), "tried": len(found.trials)}


def students(lab: Lab, way: str = STUDENT) -> Runs:
    """Students of a way, distilled by forward KL alone."""
    return lab.runs(way, lambda seed, rate: distilled(lab, way, seed, rate), recipe(lab, way))


def recipe(lab: Lab, way: str = STUDENT) -> str:
    return candidate(lab, way)["recipe"]


def student_of(lab: Lab, seed: int, way: str = STUDENT) -> Any:
    return lab.compressed(Recipe.from_yaml(recipe(lab, way)).passes(), seed)


def distilled(lab: Lab, way: str, seed: int, rate: float) -> dict[str, Any]:
    """Cut, judged, trained against the teacher, judged."""
    student = student_of(lab, seed, way)
    trained = lab.trained(student, seed, rate, teacher=lab.teacher)
    return {"before": lab.bits(student), "parameters": student.num_parameters(), **lab.judged(trained)}


def sizes(lab: Lab, way: str = STUDENT) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in candidate(lab, way)["sizes"].items())


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
