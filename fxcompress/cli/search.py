"""``fxcompress search``: the best smaller models within a budget, as recipes for ``fxcompress compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fxcompress.cli.options import MODEL, REVISION
from fxcompress.cli.progress import Steps
from fxcompress.layer_scores import LayerScore
from fxcompress.recipe import Calibration
from fxcompress.searching.budget import budgets_of
from fxcompress.searching.choices import read_axes
from fxcompress.searching.found import Found
from fxcompress.searching.profile import Name, Profile
from fxcompress.searching.run import Request, search_source
from fxcompress.source import open_source

OUT = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The directory to write")]
BUDGETS = Annotated[
    list[str], typer.Option("--budget", metavar="BUDGET", help="'parameters<=4.5B'; repeatable, all are kept")
]
AXES = Annotated[
    list[str] | None,
    typer.Option(
        "--axis", metavar="AXIS", help="ffn=8192:21504:512, layers=44,48 or width; repeatable (else all there are)"
    ),
]
TEXT = Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text to score and to rank on")]


def search(
    model: MODEL,
    out: OUT,
    budget: BUDGETS,
    calibration: TEXT,
    axis: AXES = None,
    profile: Annotated[Name, typer.Option(help="What is to load the result")] = "fxcompress",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Devices that the result is split on")] = 1,
    score: Annotated[str, typer.Option(metavar="SCORE", help="Of the passes")] = "activation",
    layer_order: Annotated[LayerScore, typer.Option(help="What says which layers matter least")] = "cosine",
    trials: Annotated[int, typer.Option(min=1, help="Candidates that are cut and scored")] = 64,
    best: Annotated[int, typer.Option(min=1, help="Of them, those that are proven and become recipes")] = 5,
    samples: Annotated[int, typer.Option(min=1, help="Pieces of the text")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens a piece")] = 512,
    revision: REVISION = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda: hold the model there (else weights stay in files)")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights, for trying a config")] = False,
) -> None:
    """Search for the smaller models that lose least within a budget.

    A search that was stopped goes on where it was when the same command is given again.
    """
    steps = Steps(Console(stderr=True))
    text = Calibration.model_validate({"file": str(calibration), "samples": samples, "length": length})
    served = Profile(profile, tensor_parallel)
    axes = read_axes(axis) if axis else None
    request = Request(budgets_of(budget), axes, served, score, layer_order, trials, best, device, text)
    request.check()
    source = open_source(model, revision, progress=steps)
    _show(search_source(request, source, out, random, steps), model, out)


def _show(found: Found, model: str, out: Path) -> None:
    console = Console(highlight=False)
    console.print(found)
    console.print(f"\nsaved to {escape(str(out))}: recipes, search.json, search.html and pareto.png")
    command = f"fxcompress compress {model} --recipe {out / 'recipe-1.yaml'} -o SMALLER"
    console.print(escape(command), style="dim", soft_wrap=True)
