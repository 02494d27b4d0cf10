"""How many indices stay in each of several groups under one threshold for all of them.

A group is cut in slices: its j-th slice is the j-th best index of every row (of every SSM group, say), so that rows
stay of one length. All slices of all groups are ranked by their mean score, and the lowest go until the part that was
asked for is gone; what an op needs at least stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Dim
from fxcompress.keep import kept_size


@dataclass(frozen=True)
class _Slice:
    """Some indices of one group that go together: the next to go when those with lower scores have gone."""

    score: float
    group: Group
    left: int  # indices of each row that stay when it is gone
    indices: int  # over all rows


def by_threshold(
    axes: AxisMap, values: Mapping[Group, Tensor], ratio: float, round_to: int, comparable: bool
) -> dict[Group, int]:
    """The count kept in every row of each group. ``comparable``: scores of different groups are of one scale as given;
    otherwise each group's are divided by their mean."""
    counts = {group: group.size for group in values}
    candidates = [s for group, scores in values.items() for s in _slices(axes, group, scores, round_to, comparable)]
    asked, gone = ratio * sum(group.total for group in values), 0
    for one in sorted(candidates, key=lambda s: s.score):
        if abs(gone + one.indices - asked) >= abs(gone - asked):
            break
        counts[one.group], gone = one.left, gone + one.indices
    return counts


def _slices(axes: AxisMap, group: Group, scores: Tensor, round_to: int, comparable: bool) -> list[_Slice]:
    best_first = scores.double().sort(-1, descending=True).values.view(-1, group.size).mean(0)
    if not comparable:
        best_first = best_first / best_first.mean().clamp(min=1e-30)
    rows, out, end = group.total // group.size, [], group.size
    fewest = max(fewest_kept(axes, group), round_to)
    while (left := (end - 1) // round_to * round_to) >= fewest:
        out.append(_Slice(float(best_first[left:end].mean()), group, left, (end - left) * rows))
        end = left
    return out


def fewest_kept(axes: AxisMap, group: Group) -> int:
    """How many indices of every row must stay for the ops that need them: the experts that a token takes, say."""
    fewest = 1
    for _, dim, least, _ in axes.needs:
        while fewest < group.size and _left(dim, group, fewest) < least:
            fewest += 1
    return fewest


def _left(dim: Dim, group: Group, count: int) -> int:
    return kept_size(dim, {group.axis: torch.arange(count)})
