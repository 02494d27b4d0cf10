"""Remove the lowest-scoring indices of free axes, wherever the axes occur.

    linear(x, W[o, i])  ->  linear(x, W[kept, i])        and so in every tensor that shares the axis o

The other structural passes are this one with the role of the axis fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from fxcompress.allocate import by_threshold, fewest_kept
from fxcompress.amount import Amount
from fxcompress.axes import AxisMap, Group
from fxcompress.axis import leaves
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass
from fxcompress.plan import MOST_INDICES, Step
from fxcompress.program import Program
from fxcompress.read_score import criterion
from fxcompress.record import Row
from fxcompress.score import Criterion, Score, best, scores
from fxcompress.statistics import Statistics, Watch


@dataclass(frozen=True, kw_only=True)
class PruneAxes(Pass):
    """Cut every free axis of a role (or whose group key matches ``groups``) by the same amount.

    ratio: the part to remove, to the nearest feasible count; size: what is left, exactly (over all outer axes).
    layers: a glob on module paths, or several; a group is taken when all of its parameters lie under matching modules.
    round_to: the count kept along the axis is a multiple of it.
    scope: "layer" cuts every group by the same amount; "global" removes the lowest-scoring indices of all groups
    together, so that layers end up with sizes of their own. The names of scores compare each index with the mean of
    its group there; scores of your own are compared as they are.
    score: "magnitude", "random", or with calibration "activation", "fluctuation", "taylor" and "routing", with options
    as in "activation(sequence=mean, batch=l2, at=output)" (``fxcompress.criteria``); a callable (program, group) ->
    tensor of shape ``group.sizes``, or tensors by group key; high is kept. seed: of the random score.
    """

    role: str | None = None
    groups: str = "*"
    ratio: float | None = None
    size: int | None = None
    layers: str | tuple[str, ...] = "*"
    round_to: int = 1
    score: Score = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise CompressError(f"{self.name}: layers= names no layer: leave it away for all of them")
        self.amount  # noqa: B018  (a contradictory amount is refused here, before any work)
        if self.scope not in ("layer", "global"):
            raise CompressError(f"scope={self.scope!r} is unknown; there are layer and global")
        if self.scope == "global" and self.size is not None:
            raise CompressError("scope='global' gives each layer a size of its own: say how much by ratio=")
        self.criterion  # noqa: B018

    @property
    def amount(self) -> Amount:
        return Amount(self.ratio, self.size, self.round_to)

    @property
    def criterion(self) -> Criterion:
        return criterion(self.score)

    @property
    def observes(self) -> bool:
        return self.criterion.observes

    def candidates(self, axes: AxisMap) -> list[Group]:
        """All groups that the pass is about, also those that are pinned or in other layers."""
        pattern = self.groups.replace("[", "[[]")  # keys end in brackets, which stand for themselves
        named = [g for g in axes.groups if fnmatchcase(g.key, pattern)]
        return [g for g in named if self.role is None or self.role in g.roles]

    def selected(self, program: Program) -> list[Group]:
        """The groups to cut. Raises CompressError when there is none, saying what there is."""
        found = self.candidates(program.get(AxisMap))
        here = [g for g in found if self._in_layers(g)]
        for pattern in self._patterns if here else ():
            if not any(_is_under(slot.name, pattern) for group in here for slot in group.slots):
                raise CompressError(f"{self.name}: {self._why_none(found, [], pattern)}")
        free = [g for g in here if not g.pinned]
        if not free:
            raise CompressError(f"{self.name}: {self._why_none(found, here)}")
        for group in free:
            if group.total > MOST_INDICES:
                raise CompressError(f"{group.key} has {group.total:,} indices; a plan can have {MOST_INDICES:,}")
        return free

    def watches(self, program: Program) -> list[Watch]:
        axes = program.get(AxisMap)
        return [watch for group in self.selected(program) for watch in self.criterion.watches(axes, group)]

    def check(self, program: Program) -> None:
        groups = self.selected(program)
        self.watches(program)
        if self.scope == "layer":
            self._check_needs(program.get(AxisMap), {g: self.amount.kept(g.sizes, g.key) for g in groups})

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        keep, rows = {}, []
        groups = self.selected(program)
        values = self._scores(program, groups, statistics)
        counts = self._counts(program.get(AxisMap), values)
        for group in groups:
            if counts[group] < group.size:
                keep[group.key] = best(values[group], counts[group])
            rows.append(self._row(group, counts[group]))
        pinned = [g for g in self.candidates(program.get(AxisMap)) if g.pinned and self._in_layers(g)]
        rows += [Row(g.key, self._role_of(g), g.total, 0.0, 0, why=g.pinned[0]) for g in pinned if self.role]
        return Step(self.name, keep), rows

    def _scores(self, program: Program, groups: list[Group], statistics: Statistics) -> dict[Group, Tensor]:
        if program.is_meta:  # a dry run: the first indices stand for any choice of the same size
            return {g: -torch.arange(g.size).float().expand(g.sizes) for g in groups}
        return {g: scores(self.criterion, program, g, statistics, self.seed + i) for i, g in enumerate(groups)}

    def _counts(self, axes: AxisMap, values: dict[Group, Tensor]) -> dict[Group, int]:
        """The count kept in every row of each group."""
        if self.scope == "layer":
            return {g: self.amount.kept(g.sizes, g.key) for g in values}
        assert self.ratio is not None
        counts = by_threshold(axes, values, self.ratio, self.round_to, self.criterion.comparable)
        self._check_total(counts)
        return counts

    def _check_total(self, counts: dict[Group, int]) -> None:
        """Under one threshold too what goes is what was asked for, to half of the largest step."""
        rows = {g: g.total // g.size for g in counts}
        total, got = sum(g.total for g in counts), sum((g.size - count) * rows[g] for g, count in counts.items())
        asked, step = (self.ratio or 0) * total, self.round_to * max(rows.values())
        if abs(asked - got) > step / 2 or (asked > 0 and got == 0):
            raise CompressError(
                f"{self.name}: ratio={self.ratio:g} asks for {asked:g} of {total} to go, {got} can in steps of up to"
                f" {step}; the nearest ratio is {got / total:.4g}"
            )

    def _check_needs(self, axes: AxisMap, counts: dict[Group, int]) -> None:
        for group, count in counts.items():
            fewest = fewest_kept(axes, group)
            if count < fewest:
                rows = group.total // group.size
                need = next(why for _, dim, _, why in axes.needs if group.axis in leaves(dim))
                raise CompressError(
                    f"{group.key}: {count * rows} of {group.total} would be left, at least {fewest * rows} must stay:"
                    f" {need}"
                )

    def _row(self, group: Group, count: int) -> Row:
        rows = group.total // group.size
        asked = group.total * self.ratio if self.ratio is not None else group.total - (self.size or 0)
        return Row(
            group.key, self._role_of(group), group.total, asked, (group.size - count) * rows, self.round_to * rows
        )

    def _role_of(self, group: Group) -> str:
        return self.role or " ".join(sorted(group.roles)) or "axis"

    def _in_layers(self, group: Group) -> bool:
        return all(any(_is_under(slot.name, pattern) for pattern in self._patterns) for slot in group.slots)

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (self.layers,) if isinstance(self.layers, str) else self.layers

    def _why_none(self, found: list[Group], here: list[Group], where: str | tuple[str, ...] = "") -> str:
        what = f"no {self.role.replace('_', ' ')}" if self.role else f"no group like {self.groups!r}"
        if here:
            hint = "; PruneVocabulary removes tokens" if "vocabulary" in here[0].roles else ""
            return f"{what} can be cut: {here[0].key} is pinned, {here[0].pinned[0]}{hint}"
        if found:
            return f"{what} lies wholly under layers={where or self.layers!r}; there is, for example, {found[0].key}"
        return f"{what} in this model; `fxcompress inspect` lists what there is"


def _is_under(name: str, pattern: str) -> bool:
    """Does the glob match the module of a tensor, or a module around it?"""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(len(parts)))
