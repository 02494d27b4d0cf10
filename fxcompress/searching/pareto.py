"""The Pareto plot: what ranks trials against what the first budget bounds. On the front none is better in both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from fxcompress.searching.budget import Budget
from fxcompress.searching.found import Found
from fxcompress.searching.measure import LOSS, Measure
from fxcompress.searching.trial import Trial

_AXES = {  # what a figure is called, and what it is divided by
    "parameters": ("parameters, millions", 1e6),
    "weights": ("weights, MB", 1e6),
    "bytes": ("weights, cache and states, MB", 1e6),
    "latency": ("latency, ms", 1e-3),
    "throughput": ("throughput, tokens/s", 1.0),
}
_GREY, _BLUE, _RED = "#98a2b3", "#2f6fde", "#b42318"


def front(trials: Sequence[Trial], budget: Budget, measure: Measure = LOSS) -> list[Trial]:
    """The trials of which none other is as good in both, the figure and what ranks them, and better in one."""
    key, sign = str(budget), -1 if budget.figure == "throughput" else 1
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (sign * t.figures[key], measure.rank(t))):
        if not kept or measure.rank(trial) < measure.rank(kept[-1]):
            kept.append(trial)
    return kept


def draw(found: Found) -> bytes:
    """As a PNG."""
    from matplotlib.figure import Figure  # takes a second to import

    budget, measure = found.budgets[0], found.measure
    known = [t for t in found.trials if measure.of(t) is not None and str(budget) in t.figures]
    label, unit = _AXES[budget.figure]

    def points(trials: Sequence[Trial]) -> tuple[list[float], list[Any]]:
        return [t.figures[str(budget)] / unit for t in trials], [measure.of(t) for t in trials]

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    plot: Any = figure.add_subplot()
    plot.scatter(*points([t for t in known if not t.why]), s=20, color=_GREY, label="trials")
    if out := [t for t in known if t.why]:
        plot.scatter(*points(out), s=20, color=_GREY, marker="x", label="out")
    plot.plot(*points(front(known, budget, measure)), color=_BLUE, linewidth=1, label="Pareto front")
    plot.scatter(*points([best.trial for best in found.best]), s=36, color=_BLUE, zorder=3, label="recipes")
    for i, best in enumerate(found.best, 1):
        ((x,), (y,)) = points([best.trial])
        plot.annotate(str(i), (x, y), textcoords="offset points", xytext=(6, 4), color=_BLUE)
    plot.axhline(measure.of(found.original), color=_RED, linewidth=1, linestyle="--", label="the model as it is")
    plot.set_xlabel(f"{label} ({budget})")
    plot.set_ylabel(measure.said)
    plot.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
