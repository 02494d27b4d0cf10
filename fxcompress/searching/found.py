"""What a search found: every trial, and the best of them as recipes that are ready for distillation.

OUT/recipe-1.yaml    the best, for ``fxcompress compress MODEL --recipe OUT/recipe-1.yaml -o SMALLER``
OUT/search.json      all that is known of every trial
OUT/search.html      the table and the plot, in one page
OUT/pareto.png       loss, or what else trials are ranked by, against the first budget's figure
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fxcompress.pipeline import Pass
from fxcompress.recipe import Calibration, Recipe
from fxcompress.searching.budget import Budget
from fxcompress.searching.measure import LOSS, Measure
from fxcompress.searching.trial import Trial

_SHOWN = 20  # trials in the table of the command line


@dataclass(frozen=True)
class Best:
    """A trial that won, the passes that make it of the model, and the laws that were proven of it."""

    trial: Trial
    passes: tuple[Pass, ...]
    laws: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Found:
    """``best``: the best one first. ``candidates``: how many kept the budgets that follow from sizes."""

    budgets: tuple[Budget, ...]
    original: Trial
    trials: tuple[Trial, ...]
    best: tuple[Best, ...]
    candidates: int
    text: Calibration | None = None  # what the calibration was read from
    measure: Measure = LOSS

    @property
    def ranked(self) -> list[Trial]:
        """All trials: those that may win by what ranks them, then the others."""
        return sorted(self.trials, key=lambda trial: (bool(trial.why), self.measure.rank(trial)))

    def recipe(self, i: int, folder: Path | None = None) -> str:
        """The i-th best as the text of a recipe; its calibration text is named relative to ``folder``."""
        best, text = self.best[i], self.text
        if text is not None and folder is not None:
            text = text.model_copy(update={"file": os.path.relpath(text.file, folder)})
        lines = [f"{best.trial}", f"{best.trial.parameters:,} parameters, zero-shot loss {best.trial.loss:.4f}"]
        lines += [f"{name} {value:.4f}" for name, value in best.trial.scores.items()]
        lines += [f"{budget}: {budget.said(best.trial.figures[str(budget)])}" for budget in self.budgets]
        return "".join(f"# {line}\n" for line in lines) + Recipe(best.passes, text).to_yaml()

    def to_json(self) -> dict[str, Any]:
        return {
            "budgets": [str(budget) for budget in self.budgets],
            "candidates": self.candidates,
            "ranked_by": self.measure.name,
            "original": self.original.to_json(),
            "best": [{"trial": best.trial.to_json(), "laws": list(map(dict, best.laws))} for best in self.best],
            "trials": [trial.to_json() for trial in self.trials],
        }

    def write(self, folder: Path, final: Path) -> None:
        """All files into a folder that will be renamed to ``final``."""
        from fxcompress.searching import page, pareto

        for i in range(len(self.best)):
            (folder / f"recipe-{i + 1}.yaml").write_text(self.recipe(i, final))
        (folder / "search.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")
        picture = pareto.draw(self)
        (folder / "pareto.png").write_bytes(picture)
        (folder / "search.html").write_text(page.render(self, picture), encoding="utf-8")

    @property
    def _shown(self) -> list[Budget]:
        """The budgets with a column of their own: parameters have one anyway."""
        return [budget for budget in self.budgets if budget.figure != "parameters"]

    def columns(self) -> list[str]:
        return [*self.original.sizes, "parameters", *map(str, self._shown), *self.original.scores, "loss"]

    def row(self, trial: Trial) -> list[str]:
        """What a table says of a trial, column by column; nothing where it is not known."""
        figures = []
        for budget in self._shown:
            value, ratio = trial.figures.get(str(budget)), trial.ratios.get(str(budget))
            said = "" if value is None else budget.said(value)
            figures.append(said + (f" ({ratio:.2f} of the time)" if ratio is not None else ""))
        scores = [_four_digits(trial.scores.get(name)) for name in self.original.scores]
        return [
            *map(str, trial.sizes.values()),
            f"{trial.parameters:,}",
            *figures,
            *scores,
            _four_digits(trial.loss),
        ]

    def place(self, trial: Trial) -> str:
        """``recipe-1`` for the best one, ``out`` for one that cannot win."""
        names = (f"recipe-{i}" for i, best in enumerate(self.best, 1) if best.trial == trial)
        return next(names, "out" if trial.why else "")

    def __rich__(self) -> Table:
        """The best trials, next to the model as it is."""
        table = Table(title=f"{len(self.trials)} of {self.candidates:,} candidates were tried", title_justify="left")
        table.add_column("")
        for name in self.columns():
            table.add_column(name, justify="right", overflow="fold")
        table.add_row("as it is", *self.row(self.original), style="dim", end_section=True)
        for trial in self.ranked[:_SHOWN]:
            table.add_row(self.place(trial), *self.row(trial))
        return table


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
