"""From a checkpoint to a result in a new directory, in stages: a run that was stopped goes on where it was.

    plan on meta ──▶ refuse, or tell what will be ──▶ try the output ──▶ pass after pass ──▶ file after file

Everything that can be refused is refused before weights are read. Weights stay in their files until they are used, so
that memory goes by the largest layer and not by the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fxcompress.allocator import return_freed_memory
from fxcompress.batches import batches_of, require_fitting
from fxcompress.calibration import read_calibration
from fxcompress.compressed import CompressedModel, compress_opened
from fxcompress.errors import CompressError
from fxcompress.export.choose import Choice, choose
from fxcompress.export.companions import find_tokenizer
from fxcompress.export.config import NotExpressible
from fxcompress.export.files import prepare_output
from fxcompress.export.form import find_form
from fxcompress.export.nearest import nearest
from fxcompress.export.save import MAX_SHARD_SIZE, PACKED, RESERVE, Result, versions
from fxcompress.export.shards import read_size
from fxcompress.files import sha256
from fxcompress.journal import Journal, journaled, key_of
from fxcompress.kept_statistics import digest, require_usable
from fxcompress.passes import PruneAxes
from fxcompress.pipeline import Pass, listed
from fxcompress.progress import Progress, silent
from fxcompress.recipe import Calibration, Recipe
from fxcompress.source import Opened, Source, open_source

Target = Literal["transformers", "fxcompress"]


@dataclass(frozen=True)
class Request:
    """What is to be done to a model. ``calibration`` of the recipe is text; ``batches`` are token ids already.

    sizes_only: nothing but a plan is wanted, which takes neither weights nor text.
    """

    source: Source
    recipe: Recipe
    batches: Any = None
    statistics: str | Path | None = None
    target: Target = "fxcompress"
    max_shard_size: int | str = MAX_SHARD_SIZE
    random: bool = False
    verify: bool = True
    packed: bool = False
    sizes_only: bool = False

    def check(self) -> None:
        """Raise CompressError for what can be refused before anything is captured."""
        if self.target not in ("transformers", "fxcompress"):
            raise CompressError(f"target={self.target!r} is unknown; there are transformers and fxcompress")
        read_size(self.max_shard_size)
        for p in self.recipe.steps:
            if p.kind == "runtime":
                raise CompressError(
                    f"{p.name} chooses kernels for a model that runs on this machine, and files hold weights alone:"
                    f" apply it to fxcompress.load(...) of the result; `fxcompress kernels` shows what it would choose"
                )
        if self.packed and not any(p.kind == "weights" for p in self.recipe.steps):
            raise CompressError("packed leaves out the zeros of pruned weights: add PruneWeights to the passes")
        if self.packed and self.target == "transformers":
            raise CompressError("transformers does not read packed weights: leave out packed, or the target")
        if self.sizes_only:
            return
        if not self.random:
            self.source.check_weights()
        blind = [p.name for p in self.recipe.steps if p.observes]
        if blind and self.recipe.calibration is None and self.batches is None and self.statistics is None:
            raise CompressError(f"{blind[0]} scores by activations and needs text to run on: --calibration FILE")
        running = [p.name for p in self.recipe.steps if p.reruns]
        if running and self.recipe.calibration is None and self.batches is None:
            raise CompressError(f"{running[0]} runs the pruned model on text, statistics do not do: --calibration FILE")
        if self.statistics is not None:
            require_usable(Path(self.statistics))


@dataclass(frozen=True)
class Planned:
    """A dry run: the original and the result without values, and what will load it."""

    original: Opened
    result: CompressedModel
    batches: list | None
    choice: Choice
    left_out: str = ""  # of the files, which hold more than the model


def compress(
    model: str | Path,
    out: str | Path,
    passes: Sequence[Pass] | Recipe,
    calibration: Any = None,
    *,
    statistics: str | Path | None = None,
    revision: str | None = None,
    target: Target = "fxcompress",
    max_shard_size: int | str = MAX_SHARD_SIZE,
    random: bool = False,
    verify: bool = True,
    packed: bool = False,
    progress: Progress = silent,
) -> CompressedModel:
    """Compress the checkpoint in a directory, or of a hub id, into a new directory, and return the result.

    passes: in order, or a recipe. calibration, statistics: as ``apply`` takes them. target: "transformers" refuses
    what stock transformers cannot load, before work starts. max_shard_size, packed: as ``save_pretrained`` takes them.
    random: weights as the class initialises them, to try a config. The same call goes on where an earlier one was
    stopped. Raises CompressError.
    """
    source = open_source(model, revision, progress=progress)
    recipe = passes if isinstance(passes, Recipe) else Recipe(listed(passes))
    request = Request(source, recipe, calibration, statistics, target, max_shard_size, random, verify, packed)
    prepare_output(out, original=source.directory)
    return carry_out(request, plan(request, progress), out, progress)


def plan(request: Request, progress: Progress = silent) -> Planned:
    """What the result will be, from sizes alone. Raises CompressError for what cannot be done."""
    request.check()
    batches = None if request.sizes_only else _batches(request, progress)
    original = request.source.on_meta()
    if batches is not None:
        require_fitting(batches, original.program.origin.config)
    result = compress_opened(original, request.recipe.steps, verify=request.verify, progress=progress)
    with progress("config of the result"):
        choice = Choice("graph", None, PACKED) if request.packed else choose(result.program, result.steps)
        if choice.why and not request.packed:
            choice = replace(choice, why=f"{choice.why}. {_nearest(request, original)}".removesuffix(". "))
    if choice.why and request.target == "transformers":
        raise NotExpressible(choice.why)
    return Planned(
        original, result, batches, choice, "" if request.random or request.sizes_only else request.source.left_out()
    )


def _nearest(request: Request, original: Opened) -> str:
    """What stock transformers could hold in the place of the first pass whose result it cannot."""
    program, steps = original.program, list(original.steps)
    for p in request.recipe.steps:
        after = compress_opened(Opened(program, steps), [p], verify=False)
        try:
            find_form(after.program, after.steps)
        except NotExpressible:
            if isinstance(p, PruneAxes):
                return f"{p.name}: {nearest(program, p)}"
            return f"{p.name}: it can leave out whole layers, no parts" if getattr(p, "part", None) else ""
        program, steps = after.program, after.steps
    return ""


def carry_out(request: Request, planned: Planned, out: str | Path, progress: Progress = silent) -> CompressedModel:
    """Do what was planned and write it to ``out``."""
    return_freed_memory()
    size = sum(t.numel() * t.element_size() for t in planned.result.program.state.values())
    folder = prepare_output(out, size + RESERVE, request.source.directory)
    hashes = _hashes(request, progress)
    with journaled(folder, _key(request, planned, hashes)) as (beside, journal):
        _tidy(beside, journal)
        opened = request.source.opened(request.random, planned.original.program)
        small = compress_opened(
            opened, request.recipe.steps, planned.batches, request.verify, progress, journal, request.statistics
        )
        earlier = opened.report.notes.get("runs", [])
        small.report.notes |= {"runs": [*earlier, _run(request, hashes, len(opened.steps))]}
        small.report.notes |= {"left out": planned.left_out} if planned.left_out else {}
        tokenizer = find_tokenizer(small.program, request.source.folder)
        limit = read_size(request.max_shard_size)
        with progress(f"saving {out}"):
            Result(small.program, small.steps, small.report, tokenizer, limit, request.packed).write(
                beside, journal.stage
            )
    return small


def _batches(request: Request, progress: Progress) -> list | None:
    if request.recipe.calibration is not None:
        with progress("tokens of the calibration text"):
            return batches_of(read_calibration(request.recipe.calibration, request.source.folder))
    return None if request.batches is None else batches_of(request.batches)


def _hashes(request: Request, progress: Progress) -> dict[str, str]:
    """Of the files that the result is made from, by their names."""
    files = [] if request.random else request.source.files
    if request.recipe.calibration is not None:
        files = [*files, Path(request.recipe.calibration.file)]
    hashes = {}
    with progress("hashes of the original", len(files)) as advance:
        for file in files:
            hashes[file.name] = sha256(file)
            advance()
    return hashes


def _key(request: Request, planned: Planned, hashes: dict[str, str]) -> str:
    """All that the result depends on. Scores that are the caller's own cannot be told apart: such a run begins anew."""
    config = planned.original.program.origin.config
    return key_of(
        {
            "hashes": hashes,
            "config": config.to_json_string(use_diff=False),
            "steps": [step.to_json() for step in planned.original.steps],
            "recipe": _portable_recipe(request.recipe).to_yaml(),
            "own": [id(p) for p in request.recipe.steps if not isinstance(getattr(p, "score", ""), str)],
            "batches": None if planned.batches is None else digest(planned.batches),
            "statistics": _found(request),
            "random": request.random,
            "verify": request.verify,
            "packed": request.packed,
            "max_shard_size": read_size(request.max_shard_size),
            "versions": versions(),
        }
    )


def _found(request: Request) -> str | None:
    """The hash of the statistics where nothing but their file says what was found."""
    alone = request.statistics is not None and request.recipe.calibration is None and request.batches is None
    return sha256(Path(request.statistics)) if alone and Path(request.statistics).is_file() else None  # type: ignore[arg-type]


def _tidy(folder: Path, journal: Journal) -> None:
    """Remove what an earlier run left half done."""
    whole = {what.removeprefix("weights ") for what in journal.stages}
    for file in folder.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.name not in whole:
            file.unlink()


def _run(request: Request, hashes: dict[str, str], begins_at: int) -> dict[str, Any]:
    """What this run made the result from: enough to make it again, and to know the original when it is seen."""
    return {
        "model": request.source.path.resolve().name,
        "begins_at": begins_at,  # steps that the model had behind it
        "random": request.random,
        "recipe": _portable_recipe(request.recipe).to_yaml(),
        "versions": versions(),
        "sha256": hashes,
    }


def _portable_recipe(recipe: Recipe) -> Recipe:
    """The text by its name alone: where it lay is of no use elsewhere."""
    if recipe.calibration is None:
        return recipe
    named: Calibration = recipe.calibration.model_copy(update={"file": Path(recipe.calibration.file).name})
    return replace(recipe, calibration=named)
