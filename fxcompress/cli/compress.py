"""``fxcompress compress``: what can be refused is refused on a dry run, before the weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fxcompress.cli.dry_run import show_dry_run
from fxcompress.cli.options import MODEL, REVISION
from fxcompress.cli.progress import Steps
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.export.choose import SAID
from fxcompress.export.files import prepare_output
from fxcompress.export.save import MAX_SHARD_SIZE
from fxcompress.manifest import read_manifest
from fxcompress.recipe import Calibration, Recipe
from fxcompress.run import Request, Target, carry_out, plan
from fxcompress.source import open_source

OUT = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="The directory to write")]
PASSES = Annotated[
    list[str] | None, typer.Option("--pass", metavar="PASS", help="'PruneFFN(ratio=0.25)'; repeatable, in order")
]
TARGET = Annotated[Target, typer.Option(help="transformers: refuse what stock transformers cannot load")]
SHARD = Annotated[str, typer.Option("--max-shard-size", metavar="SIZE", help="Of a weights file")]


def compress(
    model: MODEL,
    out: OUT = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Passes and calibration, as YAML")] = None,
    passes: PASSES = None,
    calibration: Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8 text to score activations on")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Pieces of the text [64, or as the recipe says]")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens a piece [512, or as the recipe says]")] = None,
    statistics: Annotated[Path | None, typer.Option(metavar="FILE", help="What calibration finds, kept there")] = None,
    target: TARGET = "fxcompress",
    max_shard_size: SHARD = MAX_SHARD_SIZE,
    packed: Annotated[
        bool, typer.Option("--packed", help="Leave out the zeros of pruned weights in the files")
    ] = False,
    revision: REVISION = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the result's sizes and write nothing")] = False,
    random: Annotated[bool, typer.Option("--random", help="Random weights, for trying a config")] = False,
    verify: Annotated[bool, typer.Option(help="Check the laws after every pass")] = True,
) -> None:
    """Compress a model into a new directory, each pass verified before the next.

    A run that was stopped goes on where it was when the same command is given again.
    """
    steps = Steps(Console(stderr=True))
    wanted = _recipe(recipe, passes or [], calibration, samples, length)
    source = open_source(model, revision, progress=steps)
    request = Request(
        source, wanted, None, statistics, target, max_shard_size, random, verify, packed, sizes_only=dry_run
    )
    if not dry_run:
        prepare_output(_required(out), original=source.directory)
    planned = plan(request, steps)
    if dry_run:
        show_dry_run(planned)
        return
    if planned.choice.why:
        steps.console.print("[yellow]stock transformers will not load the result:[/]", highlight=False)
        steps.console.print(planned.choice.why, markup=False, highlight=False)
    if planned.left_out:
        steps.console.print(planned.left_out, markup=False, highlight=False, style="yellow")
    small = carry_out(request, planned, _required(out), steps)
    try:
        _show(small, _required(out))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"the result is whole, in {out}") from error


def _required(out: Path | None) -> Path:
    if out is None:
        raise CompressError("-o OUT is missing: the directory to write; --dry-run does without")
    return out


def _recipe(
    file: Path | None, passes: list[str], calibration: Path | None, samples: int | None, length: int | None
) -> Recipe:
    """A recipe file, or passes as text; the command line's calibration goes before the file's."""
    if (file is None) == (not passes):
        raise CompressError("say what to do by one of --recipe FILE and --pass 'PruneFFN(ratio=0.25)'")
    recipe = Recipe(tuple(map(Recipe.parse_pass, passes))) if file is None else Recipe.load(file)
    given: dict[str, Any] = {"file": calibration and str(calibration), "samples": samples, "length": length}
    given = {name: value for name, value in given.items() if value is not None}
    if recipe.calibration is not None:
        return Recipe(recipe.steps, recipe.calibration.model_copy(update=given))
    if given and calibration is None:
        raise CompressError("--samples and --length are about --calibration FILE, which is missing")
    return Recipe(recipe.steps, Calibration(**given) if given else None)


def _show(small: CompressedModel, out: Path) -> None:
    console = Console()
    console.print(small.report)
    manifest = read_manifest(out)
    console.print(f"\nsaved to {out}", markup=False, highlight=False)
    console.print(SAID[manifest["loads_with"]], highlight=False)
    if manifest["why_not_transformers"]:
        console.print(manifest["why_not_transformers"], markup=False, highlight=False, style="dim")
