"""A table and a plot of what was found, as a section of docs/results.md.

One arm is below another if every one of its runs is: of two equal arms with three runs each, that happens in one of ten
pairs. Where runs overlap, and with fewer than three, the difference is undecided; an arm that ran once is given twice
the widest spread of any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Arm:
    """One way of doing it, with the bits per byte of every run. before: of the first step, where there was one."""

    name: str
    after: tuple[float, ...]
    before: tuple[float, ...] = ()
    facts: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, cells: Sequence[dict[str, Any]], *facts: str) -> Arm:
        before = tuple(cell["before"] for cell in cells if "before" in cell)
        return cls(name, tuple(cell["after"] for cell in cells), before, facts)


RULE = (
    "*Lower*: every run is below every run of the next arm; of equal arms with three runs each one pair in ten is so."
    " A single run has to be so by twice the widest spread. Twice and half the learning rates were worse, with another"
    " seed and on other rows. Bits per byte; seeds differ in calibration, text and random weights."
)


def below(one: Arm, other: Arm, widest: float) -> bool:
    """Whether all runs of one are below all of the other; ``widest``: the spread of the arm that has the widest."""
    fewest, most = sorted((len(one.after), len(other.after)))
    if most < 3 or fewest == 2:
        return False
    slack = 2 * widest if fewest == 1 else 0.0
    return max(one.after) + slack < min(other.after)


def ranking(arms: Sequence[Arm], facts: Sequence[str]) -> str:
    """A Markdown table, the lowest first, each compared with the one after it."""
    ranked = sorted(arms, key=lambda arm: mean(arm.after))
    widest = max((max(arm.after) - min(arm.after) for arm in arms if len(arm.after) > 1), default=0.0)
    names = ["", *facts, "before", "after", "runs", "against the next"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for arm, following in zip(ranked, [*ranked[1:], None], strict=True):
        verdict = "" if following is None else "lower" if below(arm, following, widest) else "undecided"
        facts_of = (*arm.facts, *[""] * (len(facts) - len(arm.facts)))
        cells = [arm.name, *facts_of, told(arm.before), told(arm.after), str(len(arm.after)), verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(values: Sequence[float]) -> str:
    """The mean, and from where to where the runs lie."""
    if not values:
        return ""
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def plot(file: Path, arms: Sequence[Arm], teacher: float) -> None:
    """Every run as a dot, before training hollow and after it filled; the teacher as a line."""
    ranked = sorted(arms, key=lambda arm: -mean(arm.after))
    figure, axes = pyplot.subplots(figsize=(7.5, 1.2 + 0.4 * len(ranked)), layout="constrained")
    for height, arm in enumerate(ranked):
        for values, fill in ((arm.before, "none"), (arm.after, "C0")):
            axes.scatter(values, [height] * len(values), s=36, facecolors=fill, edgecolors="C0", zorder=3)
    axes.axvline(teacher, color="0.5", linestyle="--", label="teacher")
    axes.scatter([], [], s=36, facecolors="C0", edgecolors="C0", label="after training")
    if any(arm.before for arm in arms):
        axes.scatter([], [], s=36, facecolors="none", edgecolors="C0", label="before")
    axes.set_yticks(range(len(ranked)), [arm.name for arm in ranked])
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlabel("held-out bits per byte")
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):  # the same plot is the same file
        figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def put(page: Path, title: str, body: str) -> None:
    """The section of a page with this title, in the place of an older one or at the end."""
    old, section = page.read_text() if page.exists() else "", f"## {title}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", old, re.M | re.S)
    if found is None:
        new = f"{old.rstrip()}\n\n{section}"
    else:
        new = old[: found.start()] + section + ("\n" if old[found.end() :] else "") + old[found.end() :]
    beside = page.with_name(f"new-{page.name}")
    beside.write_text(new)
    beside.replace(page)


def show(
    page: Path, name: str, title: str, text: str, arms: Sequence[Arm], facts: Sequence[str], teacher: float
) -> None:
    """The section of an experiment: what was done, the table, the plot."""
    plot(page.parent / "figures" / f"{name}.svg", arms, teacher)
    body = f"{text.strip()}\n\n{ranking(arms, facts)}\n\n{RULE}\n\n![Bits per byte of every run](figures/{name}.svg)"
    put(page, title, body)
    print(body)
