"""A library of choices for every subblock of a model: keep it, leave it out, or cut it, each with what it saves.

Costs are exact, from sizes: what the model has fewer when one subblock is replaced. They add up, because no choice
reaches outside of its subblock. Where layers share weights, leaving out one of them saves nothing of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeAlias

from fxcompress.allocate import fewest_kept
from fxcompress.axes import AxisMap, Group
from fxcompress.errors import CompressError
from fxcompress.memory import Footprint
from fxcompress.passes import PruneAttentionHeads, PruneAxes, PruneFFN, PruneSSMHeads
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.score import Score
from fxcompress.searching.budget import Budget
from fxcompress.searching.choices import as_mapping, listed
from fxcompress.searching.depth import alive
from fxcompress.searching.subblocks import Decisions, Kind, Subblock, footprint, removal

# What each axis of choices cuts, and in subblocks of which kind.
CUTS: dict[str, tuple[Kind, Callable[..., PruneAxes]]] = {
    "ffn": ("ffn", PruneFFN),
    "query_heads": ("attention", PruneAttentionHeads),
    "kv_heads": ("attention", partial(PruneAttentionHeads, kv=True)),
    "ssm_heads": ("ssm", PruneSSMHeads),
}
PARTS = (0.75, 0.5, 0.25)  # of what a subblock has, where no sizes are given
KEEP, LEAVE_OUT = "keep", "leave out"
Sizes: TypeAlias = "Mapping[str, Sequence[int] | None]"


@dataclass(frozen=True)
class Option:
    """One choice for one subblock. ``name``: "keep", "leave out" or "ffn=4096"; ``cut``: the pass that cuts it."""

    subblock: Subblock
    name: str
    cut: PruneAxes | None = None

    def __str__(self) -> str:
        return f"{self.subblock.path}: {self.name}"


@dataclass(frozen=True)
class Costed:
    """A choice, its step alone, and how the counts of the whole model change by it."""

    option: Option
    step: Step
    change: Footprint

    def cost(self, budget: Budget) -> int:
        """The change of a budget's figure, in its unit, rounded to the side on which the budget is sure to be kept."""
        if budget.at_least:
            return -int(budget.value(self.change.map(lambda count: -count)))
        return int(budget.value(self.change))


def options(program: Program, block: Subblock, sizes: Sizes, score: Score) -> list[Option]:
    """The choices for a subblock: keep it, leave it out, cuts. Raises CompressError for sizes that cannot be.

    sizes: by axis of ``CUTS``, what is left in a layer; None for parts of what it has. Those that a layer does not
    exceed are no choice there, nor is a cut that reaches into other layers.
    """
    found = [Option(block, KEEP), Option(block, LEAVE_OUT)]
    seen: set[tuple[frozenset[str], int]] = set()  # where every query head has a KV head, cutting either is the same
    for axis, asked in sizes.items():
        for groups, size in _sizes(program, block, axis, asked):
            cut = frozenset(group.key for group in groups), size
            if cut not in seen:
                seen.add(cut)
                found.append(Option(block, f"{axis}={size}", _cut(axis, size, block, score)))
    return found


def costed(decisions: Decisions, several: Sequence[Option]) -> list[Costed]:
    """Choices with what they change, each alone."""
    program = decisions.program
    whole = footprint(program, Step("whole"))
    steps = [decisions.together(passes_of([option])) for option in several]
    return [Costed(o, s, _change(whole, footprint(program, s))) for o, s in zip(several, steps, strict=True)]


def open_sizes(space: Any) -> Sizes:
    """Sizes by axis; None for every axis. Raises CompressError for axes that there are not, and for no sizes."""
    if space is None:
        return dict.fromkeys(CUTS)
    wanted = {} if space == {} else as_mapping(space, tuple(CUTS))  # nothing to cut: layers are kept or left out
    return {axis: None if asked is None else listed(axis, asked) for axis, asked in wanted.items()}


def passes_of(chosen: Sequence[Option]) -> tuple[Pass, ...]:
    """One pass for all parts that are left out of a kind, and one for all that are cut to one size.

    Layers go first, so that what is cut after them is proven on the smaller model.
    """
    together: dict[PruneAxes, list[str]] = {}
    for one in chosen:
        if isinstance(one.cut, PruneAxes):
            together.setdefault(replace(one.cut, layers="*"), []).append(one.subblock.path)
    gone = [one.subblock for one in chosen if one.name == LEAVE_OUT]
    return (*removal(gone), *(replace(cut, layers=tuple(paths)) for cut, paths in together.items()))


def _cut(axis: str, size: int, block: Subblock, score: Score = "magnitude") -> PruneAxes:
    return CUTS[axis][1](size=size, layers=block.path, score=score)


def _sizes(
    program: Program, block: Subblock, axis: str, asked: Sequence[int] | None
) -> Iterator[tuple[list[Group], int]]:
    """The sizes that a subblock can be cut to along an axis, with what is cut."""
    groups = _groups(program, block, axis)
    if not groups:
        return
    first = groups[0]
    fewest = max(fewest_kept(program.get(AxisMap), group) for group in groups)
    rows = first.total // first.size
    if asked is None:
        asked = [count * rows for part in PARTS if fewest <= (count := round(part * first.size)) < first.size]
    for size in dict.fromkeys(size for size in asked if size < first.total):
        _cut(axis, size, block).check(program)
        yield groups, size


def _groups(program: Program, block: Subblock, axis: str) -> list[Group]:
    """What an axis cuts in a subblock: nothing where it has several sizes, or is found in other layers too."""
    try:
        groups = _cut(axis, 1, block).selected(program) if CUTS[axis][0] == block.kind else []
    except CompressError:  # it has no such axis
        return []
    names = {slot.name for group in groups for slot in group.slots}
    outside = {str(node.target) for node in alive(program, [block.path]) if node.op == "get_attr"}
    return groups if len({group.sizes for group in groups}) == 1 and not names & outside else []


def _change(before: Footprint, after: Footprint) -> Footprint:
    parts = {}
    for part in fields(Footprint):
        old, new = getattr(before, part.name), getattr(after, part.name)
        parts[part.name] = {dtype: new.get(dtype, 0) - count for dtype, count in old.items()}
    return Footprint(**parts)
