"""Searches that choose among the attention, the FFN and the SSM of every layer: what MiniPuzzle and Puzzle share.

score every choice alone ──▶ candidates within the budgets ──▶ judge each as a whole ──▶ prove the best ──▶ recipes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fxcompress.batches import Batch
from fxcompress.compressed import checks, open_model
from fxcompress.errors import CompressError
from fxcompress.kept_statistics import digest
from fxcompress.passes import PruneAxes
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.read_score import criterion
from fxcompress.recipe import Calibration
from fxcompress.score import Score
from fxcompress.searching.budget import Budget
from fxcompress.searching.found import Found
from fxcompress.searching.identity import key_of_search
from fxcompress.searching.layered import Bench, Candidate
from fxcompress.searching.measure import Measure
from fxcompress.searching.output import output, written
from fxcompress.searching.place import directory_of, moved, named_device
from fxcompress.searching.prepare import fitting, require_counted
from fxcompress.searching.stages import Stage, Stages
from fxcompress.searching.subblocks import KINDS, Decisions, Subblock, footprint
from fxcompress.source import Opened


@dataclass(frozen=True, kw_only=True)
class ByLayers(ABC):
    """What is searched for. ``text``: where the calibration came from, for the recipes."""

    measure: ClassVar[Measure]

    budgets: tuple[Budget, ...]
    space: Any = None
    score: Score = "activation"
    trials: int = 1
    best: int = 1
    device: str | None = None
    text: Calibration | None = None

    def check(self) -> None:
        """Raise CompressError for what can be refused before anything is captured."""
        require_counted(self.budgets)
        PruneAxes(size=1, score=self.score)
        if not 1 <= self.best <= self.trials:
            raise CompressError(f"best={self.best} of trials={self.trials}: at least one, and no more than are tried")
        if self.device is not None:
            named_device(self.device)

    def asked(self) -> dict[str, Any]:
        """All that is asked for, as JSON."""
        own = {name: value for name, value in vars(self).items() if name not in ("budgets", "space", "score", "text")}
        space, score = repr(self.space), str(criterion(self.score))
        return own | {
            "by": type(self).__name__,
            "budgets": list(map(str, self.budgets)),
            "space": space,
            "score": score,
        }

    @abstractmethod
    def candidates(
        self, program: Program, batches: Sequence[Batch], stage: Stage, progress: Progress
    ) -> tuple[Decisions, Candidate, list[Candidate]]:
        """What decides, the model as it is, and what keeps the budgets, from the most promising on.

        Raises CompressError where nothing does, with the closest.
        """

    def carry_out(
        self,
        opened: Opened,
        batches: Sequence[Batch],
        out: str | Path | None = None,
        original: Path | None = None,
        progress: Progress = silent,
        validation: Sequence[Batch] | None = None,
    ) -> Found:
        """Search, and write what was found to ``out``, which may not lie in the directory of the original."""
        folder = output(out, original, self.score)
        if opened.program.is_meta:
            raise CompressError("the model is on meta: without values there is nothing to score")
        data = fitting(opened.program, batches)
        judged_on = None if validation is None else fitting(opened.program, validation)
        asked = self.asked() | {"validation": None if judged_on is None else digest(judged_on)}
        return written(
            folder,
            lambda: key_of_search(opened, data, self.text, asked),
            lambda stage: self._searched(opened, data, judged_on, stage, progress),
        )

    def of(self, model: Any, calibration: Any, example_inputs: Any, out: Any, progress: Progress, **more: Any) -> Found:
        """The same on what ``fxcompress.apply`` takes as a model."""
        self.check()
        if calibration is None:
            raise CompressError("layers are scored on calibration data: pass calibration=, batches of token ids")
        with progress("capture"):
            opened = open_model(model, example_inputs)
        return self.carry_out(opened, calibration, out, directory_of(model), progress, **more)

    def _searched(
        self,
        opened: Opened,
        data: Sequence[Batch],
        judged_on: Sequence[Batch] | None,
        stage: Stage,
        progress: Progress,
    ) -> Found:
        with progress("checks of the original"):
            stage("checks", partial(checks, opened, verify=True))
        program = moved(opened, self.device).program
        decisions, whole, found = self.candidates(program, data, stage, progress)
        bench = Bench(decisions, self.budgets, whole, data if judged_on is None else judged_on, data)
        return Stages(bench, found, self.trials, self.best, stage, progress, self.measure).run(self.text)


def whole_model(program: Program, budgets: Sequence[Budget], sizes: dict[str, int], **scores: float) -> Candidate:
    """The model as it is, as a candidate."""
    count = footprint(program, Step("whole"))
    figures = {budget: int(budget.value(count)) for budget in budgets}
    return Candidate(sizes, (), count.parameters, figures, scores)


def layers_of_kinds(blocks: Sequence[Subblock]) -> dict[str, int]:
    """How many layers have each kind, by the name of the axis: "attention_layers" and so on."""
    counts = {f"{kind}_layers": sum(block.kind == kind for block in blocks) for kind in KINDS}
    return {name: count for name, count in counts.items() if count}
