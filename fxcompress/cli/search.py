"""``fxcompress search``: the best smaller models within a budget, as recipes for ``fxcompress compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from fxcompress.searching.from_files import search_source
from fxcompress.searching.methods import Method, request_by
from fxcompress.searching.profile import Name
from fxcompress.searching.puzzle import Metric
from fxcompress.source import open_source

OUT = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The directory to write")]
BUDGETS = Annotated[
    list[str], typer.Option("--budget", metavar="BUDGET", help="'parameters<=4.5B'; repeatable, all are kept")
]
AXES = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        metavar="AXIS",
        help="ffn=8192:21504:512, layers=44,48 or width; by minipuzzle attention_layers=4,5; repeatable (else all)",
    ),
]
TEXT = Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text to score and to rank on")]
BY = Annotated[
    Method, typer.Option("--by", help="sizes of the whole, numbers of layers of each kind, or a size for every layer")
]


def search(
    model: MODEL,
    out: OUT,
    budget: BUDGETS,
    calibration: TEXT,
    by: BY = "sizes",
    axis: AXES = None,
    profile: Annotated[Name | None, typer.Option(help="What is to load the result (fxcompress)")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="Devices that the result is split on (1)")] = None,
    score: Annotated[str, typer.Option(metavar="SCORE", help="Of the passes")] = "activation",
    layer_order: Annotated[LayerScore | None, typer.Option(help="What says which layers matter least (cosine)")] = None,
    metric: Annotated[Metric | None, typer.Option(help="Of a choice alone, by puzzle (kl)")] = None,
    apart: Annotated[int | None, typer.Option(min=1, help="Parts in which solutions differ, by puzzle (1)")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates that are tried (64; 400 by minipuzzle, 8 by puzzle)")
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help="Of them, those that are proven and become recipes (5; 3 by layers)")
    ] = None,
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
    given: dict[str, Any] = {
        "profile": profile,
        "tensor_parallel": tensor_parallel,
        "layer_order": layer_order,
        "metric": metric,
    }
    given |= {"apart": apart, "trials": trials, "best": best, "score": score, "device": device, "text": text}
    request = request_by(by, read_axes(axis) if axis else None, given | {"budgets": budgets_of(budget)})
    source = open_source(model, revision, progress=steps)
    _show(search_source(request, source, out, random, steps), model, out)


def _show(found: Found, model: str, out: Path) -> None:
    console = Console(highlight=False)
    console.print(found)
    console.print(f"\nsaved to {escape(str(out))}: recipes, search.json, search.html and pareto.png")
    command = f"fxcompress compress {model} --recipe {out / 'recipe-1.yaml'} -o SMALLER"
    console.print(escape(command), style="dim", soft_wrap=True)
