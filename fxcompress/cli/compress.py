"""``fxcompress compress``: what can be refused is refused on a dry run, before the weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import Tensor

from fxcompress.cli.calibration import read_calibration, require_known
from fxcompress.cli.dry_run import show_dry_run
from fxcompress.cli.model import Source, open_source
from fxcompress.cli.options import MODEL
from fxcompress.cli.progress import Steps
from fxcompress.compressed import CompressedModel, apply
from fxcompress.errors import CompressError
from fxcompress.export import prepare_output
from fxcompress.export.load import read_manifest, sha256
from fxcompress.export.save import versions
from fxcompress.recipe import Calibration, Recipe

OUT = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="The directory to write")]
PASSES = Annotated[
    list[str] | None, typer.Option("--pass", metavar="PASS", help="'PruneFFN(ratio=0.25)'; repeatable, in order")
]
_RESERVE = 1 << 20  # bytes for config, manifest and reports


def compress(
    model: MODEL,
    out: OUT = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Passes and calibration, as YAML")] = None,
    passes: PASSES = None,
    calibration: Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8 text to score activations on")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Pieces of the text [64, or as the recipe says]")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens a piece [512, or as the recipe says]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the result's sizes and write nothing")] = False,
    random: Annotated[bool, typer.Option("--random", help="Random weights, for trying a config")] = False,
    verify: Annotated[bool, typer.Option(help="Check the laws after every pass")] = True,
) -> None:
    """Compress a model into a new directory, each pass verified before the next."""
    steps = Steps(Console(stderr=True))
    wanted = _recipe(recipe, passes or [], calibration, samples, length)
    source = open_source(model, steps)
    if not dry_run:
        _refuse_early(source, wanted, out, random)
    batches = _batches(wanted, source)
    original = source.on_meta()
    if batches is not None:
        require_known(batches, original.program.origin.config.get_text_config().vocab_size)
    planned = apply(original, wanted.passes(), verify=verify, progress=steps)
    if dry_run:
        show_dry_run(original, planned, steps)
        return
    assert out is not None
    prepare_output(out, _bytes(planned) + _RESERVE)
    loaded = source.loaded(random)
    small = apply(loaded, wanted.passes(), batches, verify=verify, progress=steps)
    earlier = loaded.report.notes.get("runs", [])
    small.report.notes = {**loaded.report.notes, "runs": [*earlier, _run(wanted, source, len(loaded.steps), random)]}
    with steps(f"saving {out}"):
        small.save_pretrained(out, source.folder)
    _show(small, out)


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


def _refuse_early(source: Source, recipe: Recipe, out: Path | None, random: bool) -> None:
    if out is None:
        raise CompressError("-o OUT is missing: the directory to write; --dry-run does without")
    prepare_output(out)
    if not random:
        source.require_weights()
    blind = [p.name for p in recipe.steps if getattr(p, "score", None) == "activation"]
    if blind and recipe.calibration is None:
        raise CompressError(f"{blind[0]} scores by activations and needs text to run on: --calibration FILE")


def _bytes(model: CompressedModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.program.state.values())


def _batches(recipe: Recipe, source: Source) -> list[Tensor] | None:
    if recipe.calibration is None:
        return None
    with source.steps("tokens of the calibration text"):
        return read_calibration(recipe.calibration, source.folder)


def _run(recipe: Recipe, source: Source, begins_at: int, random: bool) -> dict[str, Any]:
    """What this run made the result from: enough to make it again, and to know the original when it is seen."""
    files = [] if random else source.files
    hashes = {}
    with source.steps("hashes of the original", len(files)) as advance:
        for file in files:
            hashes[file.name] = sha256(file)
            advance()
    text = recipe.calibration and Path(recipe.calibration.file)
    return {
        "model": source.path.resolve().name,
        "begins_at": begins_at,  # steps that the model had behind it
        "random": random,
        "recipe": replace(recipe, calibration=_portable(recipe.calibration)).to_yaml(),
        "versions": versions(),
        "sha256": hashes | ({text.name: sha256(text)} if text else {}),
    }


def _portable(calibration: Calibration | None) -> Calibration | None:
    """The text by its name alone: where it lay is of no use elsewhere."""
    return calibration and calibration.model_copy(update={"file": Path(calibration.file).name})


def _show(small: CompressedModel, out: Path) -> None:
    console = Console()
    console.print(small.report)
    manifest = read_manifest(out)
    console.print(f"\nsaved to {out}", markup=False, highlight=False)
    if manifest["loads_with"] == "transformers":
        console.print("it loads with transformers.AutoModelForCausalLM.from_pretrained", highlight=False)
    else:
        console.print("it loads with fxcompress.load, not with transformers:", highlight=False)
        console.print(manifest["why_not_transformers"], markup=False, highlight=False, style="dim")
