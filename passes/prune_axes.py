"""Remove the lowest-scoring indices of free axes, wherever the axes occur.

    linear(x, W[o, i])  ->  linear(x, W[kept, i])        and so in every tensor that shares the axis o

The other structural passes are this one with the role of the axis fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx

from fxcompress.amount import Amount
from fxcompress.axes import AxisMap, Group
from fxcompress.errors import CompressError
from fxcompress.observe import consumers
from fxcompress.pipeline import Pass, Row
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.score import NAMES, Score, Statistics, best, scores


@dataclass(frozen=True, kw_only=True)
class PruneAxes(Pass):
    """Cut every free axis of a role (or whose group key matches ``groups``) by the same amount.

    ratio: the part to remove, to the nearest feasible count; size: what is left, exactly (over all outer axes).
    layers: glob on module paths; a group is taken when all of its parameters lie under matching modules.
    round_to: the count kept along the axis is a multiple of it.
    score: "magnitude", "activation" (needs calibration), "random", a callable (program, group) -> tensor of shape
    ``group.sizes``, or tensors by group key; high is kept. seed: of the random score.
    """

    role: str | None = None
    groups: str = "*"
    ratio: float | None = None
    size: int | None = None
    layers: str = "*"
    round_to: int = 1
    score: Score = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        self.amount  # noqa: B018  (a contradictory amount is refused here, before any work)
        if isinstance(self.score, str) and self.score not in NAMES:
            raise CompressError(f"score={self.score!r} is unknown; there are {', '.join(NAMES)}, or pass a callable")

    @property
    def amount(self) -> Amount:
        return Amount(self.ratio, self.size, self.round_to)

    def candidates(self, axes: AxisMap) -> list[Group]:
        """All groups that the pass is about, also those that are pinned or in other layers."""
        pattern = self.groups.replace("[", "[[]")  # keys end in brackets, which stand for themselves
        named = [g for g in axes.groups if fnmatchcase(g.key, pattern)]
        return [g for g in named if self.role is None or self.role in g.roles]

    def selected(self, program: Program) -> list[Group]:
        """The groups to cut. Raises CompressError when there is none, saying what there is."""
        found = self.candidates(program.get(AxisMap))
        here = [g for g in found if self._in_layers(g)]
        free = [g for g in here if not g.pinned]
        if not free:
            raise CompressError(f"{self.name}: {self._why_none(found, here)}")
        return free

    def watches(self, program: Program) -> list[tuple[fx.Node, int]]:
        if self.score != "activation":
            return []
        axes = program.get(AxisMap)
        return [place for group in self.selected(program) for place in consumers(axes, group)]

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        keep, rows = {}, []
        groups = self.selected(program)
        counts = {g: self.amount.kept(g.sizes, g.key) for g in groups}
        for i, group in enumerate(groups):
            count = counts[group]
            if count < group.size:
                keep[group.key] = self._choose(program, group, count, statistics, self.seed + i)
            rows.append(self._row(group, count))
        pinned = [g for g in self.candidates(program.get(AxisMap)) if g.pinned and self._in_layers(g)]
        rows += [Row(g.key, self._role_of(g), g.total, 0.0, 0, why=g.pinned[0]) for g in pinned if self.role]
        return Step(self.name, keep), rows

    def _choose(self, program: Program, group: Group, count: int, statistics: Statistics, seed: int) -> torch.Tensor:
        if program.is_meta:  # a dry run: the first indices stand for any choice of the same size
            return torch.arange(count).expand(*group.sizes[:-1], count).contiguous()
        return best(scores(self.score, program, group, statistics, seed), count)

    def _row(self, group: Group, count: int) -> Row:
        rows = group.total // group.size
        asked = group.total * self.ratio if self.ratio is not None else group.total - (self.size or 0)
        return Row(
            group.key, self._role_of(group), group.total, asked, (group.size - count) * rows, self.round_to * rows
        )

    def _role_of(self, group: Group) -> str:
        return self.role or " ".join(sorted(group.roles)) or "axis"

    def _in_layers(self, group: Group) -> bool:
        return all(_is_under(slot.name, self.layers) for slot in group.slots)

    def _why_none(self, found: list[Group], here: list[Group]) -> str:
        what = f"no {self.role.replace('_', ' ')}" if self.role else f"no group like {self.groups!r}"
        if here:
            return f"{what} can be cut: {here[0].key} is pinned, {here[0].pinned[0]}"
        if found:
            return f"{what} lies wholly under layers={self.layers!r}; there is, for example, {found[0].key}"
        return f"{what} in this model; `fxcompress inspect` lists what there is"


def _is_under(name: str, pattern: str) -> bool:
    """Does the glob match the module of a tensor, or a module around it?"""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts)))
