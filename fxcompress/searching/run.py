"""From a model and what it may cost to the best smaller models, as recipes.

    enumerate ──▶ drop what cannot be loaded ──▶ cut, score, time ──▶ prove the best ──▶ recipes for distillation

What is tried is cut for real: no loss is estimated. With an output every trial is a stage of a journal beside it, so
that a search that was stopped goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress.batches import Batch, batches_of, require_fitting
from fxcompress.compressed import CompressedModel, checks, open_model
from fxcompress.errors import CompressError
from fxcompress.passes import PruneAxes
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.read_score import criterion
from fxcompress.recipe import Calibration
from fxcompress.score import Score
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.candidates import candidates
from fxcompress.searching.choices import open_space
from fxcompress.searching.depth import LayerOrder, check_order, layer_order, stack
from fxcompress.searching.found import Found
from fxcompress.searching.identity import key_of_search
from fxcompress.searching.output import output, written
from fxcompress.searching.place import directory_of, moved, named_device
from fxcompress.searching.profile import ANYTHING, Profile
from fxcompress.searching.space import LAYERS, Space
from fxcompress.searching.stages import Stage, Stages
from fxcompress.searching.trial import Bench
from fxcompress.source import Opened


@dataclass(frozen=True)
class Request:
    """What is searched for. ``text``: where the calibration came from, for the recipes. See ``search`` for the rest."""

    budgets: tuple[Budget, ...]
    axes: Any = None
    profile: Profile = ANYTHING
    score: Score = "activation"
    layer_order: LayerOrder = "cosine"
    trials: int = 64
    best: int = 5
    device: str | None = None
    text: Calibration | None = None

    def check(self) -> None:
        """Raise CompressError for what can be refused before anything is captured."""
        PruneAxes(size=1, score=self.score)
        check_order(self.layer_order)
        if not 1 <= self.best <= self.trials:
            raise CompressError(f"best={self.best} of trials={self.trials}: at least one, and no more than are tried")
        if self.device is not None:
            named_device(self.device)

    def asked(self, space: Space) -> dict[str, Any]:
        """All that is asked for, as JSON."""
        return {
            "budgets": [str(budget) for budget in self.budgets],
            "space": {axis.name: axis.sizes for axis in space.choices},
            "layer_order": [space.layer_order, self.layer_order if isinstance(self.layer_order, str) else ""],
            "profile": vars(self.profile),
            "score": str(criterion(self.score)),
            "trials": self.trials,
            "best": self.best,
            "device": self.device,
        }

    def carry_out(
        self, opened: Opened, batches: Sequence[Batch], out: str | Path, original: Path | None, progress: Progress
    ) -> Found:
        return carry_out(self, opened, batches, out, original, progress)


def search(
    model: nn.Module | Program | CompressedModel | str | Path,
    budget: str | Budget | Sequence[str | Budget],
    space: Any = None,
    calibration: Any = None,
    *,
    profile: str = "fxcompress",
    tensor_parallel: int = 1,
    score: Score = "activation",
    layer_order: LayerOrder = "cosine",
    trials: int = 64,
    best: int = 5,
    device: str | None = None,
    out: str | Path | None = None,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> Found:
    """Search for the best smaller models within a budget, and return them with the passes that make them.

    model: as ``fxcompress.apply`` takes it, with values. It is left alone.
    budget: one or several, ``"parameters<=4.5B"``: see ``fxcompress.searching.budget``.
    space: sizes by axis, ``{"width": (3072, 4096, 256), "ffn": [8192, 12288], "layers": None}``, names of axes, or None
    for all that the model has: see ``fxcompress.searching.choices``.
    calibration: batches of token ids, for scores and for the loss that ranks.
    profile, tensor_parallel: what is to serve the result, on how many devices: see ``fxcompress.searching.profile``.
    score: of the passes. layer_order: which layers go first, by a score or by their positions: see
    ``fxcompress.searching.depth``.
    trials: how many candidates are cut and scored, the largest first; with a measured budget, spread over all sizes.
    best: how many are proven and become recipes.
    device: "cpu" or "cuda", where all weights are held meanwhile; else they stay in the model, or in files.
    out: a new directory for recipes, table and plot; the same call goes on where an earlier one was stopped.

    Raises CompressError where nothing keeps the budget, with the closest; ProofError where a law does not hold.
    """
    served = Profile(profile, tensor_parallel)  # type: ignore[arg-type]
    request = Request(budgets_of(budget), space, served, score, layer_order, trials, best, device)
    request.check()
    if calibration is None:
        raise CompressError("a search ranks by the loss on calibration data: pass calibration=, batches of token ids")
    with progress("capture"):
        opened = open_model(model, example_inputs)
    return carry_out(request, opened, batches_of(calibration), out, directory_of(model), progress)


def carry_out(
    request: Request,
    opened: Opened,
    batches: Sequence[Batch],
    out: str | Path | None = None,
    original: Path | None = None,
    progress: Progress = silent,
) -> Found:
    """Search, and write what was found to ``out``, which may not lie in the directory of the original."""
    folder = output(out, original, request.score)
    space = _space(request, opened.program, batches)
    return written(
        folder,
        lambda: key_of_search(opened, batches, request.text, request.asked(space)),
        lambda stage: _searched(request, opened, space, batches, stage, progress),
    )


def _space(request: Request, program: Program, batches: Sequence[Batch]) -> Space:
    """What can be searched. Layers that are to be scored are still in the order of the model."""
    if program.is_meta:
        raise CompressError("the model is on meta: without values there is no loss to rank by")
    if program.origin.config is not None:
        require_fitting(batches, program.origin.config)
    layers = range(len(stack(program)))
    order = layers if isinstance(request.layer_order, str) else layer_order(program, request.layer_order)
    return request.profile.narrowed(open_space(program, request.axes, order), program)


def _searched(
    request: Request, opened: Opened, space: Space, batches: Sequence[Batch], stage: Stage, progress: Progress
) -> Found:
    program = opened.program
    with progress("checks of the original"):
        stage("checks", partial(checks, opened, verify=True))
    opened = moved(opened, request.device)
    batches = [{name: tensor.to(opened.program.device) for name, tensor in batch.items()} for batch in batches]
    if space[LAYERS] and isinstance(request.layer_order, str):
        order = stage("layers", partial(layer_order, opened.program, request.layer_order, batches, progress))
        space = replace(space, layer_order=tuple(order))
    with progress("candidates"):
        found = candidates(program, space, request.budgets)
    with progress("the original as it is served"):
        bench = Bench(opened, space, request.budgets, request.profile, request.score, batches)
    return Stages(bench, found, request.trials, request.best, stage, progress).run(request.text)
