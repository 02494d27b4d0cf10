"""The space of a search: which axes of a model may have which sizes, the same in every layer.

Sizes are channels of the residual stream, neurons, query heads and SSM heads of a layer, channels of one SSM head (of a
layer where there are no heads), and layers that stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxcompress.axes import Group
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
    RemoveLayers,
)
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.score import Score

# In the order in which they are cut: heads are scored by the channels that are left of them (Minitron-SSM, arXiv
# 2504.11409, section 3), and layers go last, so that whatever is scored is scored in the whole model.
AXES: dict[str, type[PruneAxes]] = {
    "ssm_channels": PruneSSMChannels,
    "ssm_heads": PruneSSMHeads,
    "query_heads": PruneAttentionHeads,
    "ffn": PruneFFN,
    "width": PruneEmbedding,
}
LAYERS = "layers"
NAMES = (*AXES, LAYERS)
_OF_ONE_ROW = ("ssm_channels",)  # sizes that do not count the rows of a group together

Sizes: TypeAlias = "Mapping[str, int]"  # a size for every axis of a space


@dataclass(frozen=True)
class Choices:
    """The sizes that one axis may have. ``groups``: what is cut, all of one size; none where layers are removed."""

    name: str
    original: int
    sizes: tuple[int, ...]  # ascending
    groups: tuple[Group, ...] = ()

    @classmethod
    def of(cls, name: str, groups: Sequence[Group]) -> Choices:
        """An axis with the original's size alone."""
        first = groups[0]
        original = first.size if name in _OF_ONE_ROW else first.total
        return cls(name, original, (original,), tuple(groups))

    @property
    def rows(self) -> int:
        """Of each group, the same number of indices stays in each of them."""
        return self.groups[0].total // self.groups[0].size if self.groups else 1

    @property
    def step(self) -> int:
        """Sizes are multiples of it."""
        return 1 if self.name in _OF_ONE_ROW else self.rows

    def count(self, size: Any) -> Any:
        """Indices that stay in each row."""
        return size // self.step

    def total(self, size: int) -> int:
        """Indices that stay in each group, over all rows."""
        return size * self.rows // self.step


@dataclass(frozen=True)
class Space:
    """Axes of one model with their sizes. ``layer_order``: positions of layers, the first to go first."""

    choices: tuple[Choices, ...]
    layer_order: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many combinations of sizes there are."""
        return math.prod(len(axis.sizes) for axis in self.choices)

    def __getitem__(self, name: str) -> Choices | None:
        return next((axis for axis in self.choices if axis.name == name), None)

    @property
    def original(self) -> dict[str, int]:
        return {axis.name: axis.original for axis in self.choices}

    def removed(self, layers: int) -> tuple[int, ...]:
        """The positions of the layers that go where so many stay."""
        return tuple(sorted(self.layer_order[: len(self.layer_order) - layers]))

    def passes(self, sizes: Sizes, score: Score) -> tuple[Pass, ...]:
        """The passes that give a model these sizes; none for what is as it was."""
        out: list[Pass] = []
        for axis in self.choices:
            size = sizes[axis.name]
            if size == axis.original:
                continue
            if axis.name == LAYERS:
                out.append(RemoveLayers(layers=self.removed(size)))
            else:
                out.append(AXES[axis.name](size=axis.total(size), score=score))
        return tuple(out)

    def step(self, sizes: Sizes, stack: Sequence[str]) -> Step:
        """The same cut in one step, with the first indices for any choice of them. ``stack``: the layers' paths."""
        keep: dict[str, Tensor] = {}
        for axis in self.choices:
            count = axis.count(sizes[axis.name])
            if sizes[axis.name] != axis.original:
                keep |= {group.key: torch.arange(count).expand(*group.sizes[:-1], count) for group in axis.groups}
        removed = self.removed(sizes[LAYERS]) if self[LAYERS] else ()
        return Step("candidate", keep, tuple(stack[i] for i in removed))

    def only(self, sizes: Mapping[str, Sequence[int]]) -> Space:
        """The same with fewer sizes."""
        fewer = (replace(axis, sizes=tuple(sizes.get(axis.name, axis.sizes))) for axis in self.choices)
        return replace(self, choices=tuple(fewer))


def said(sizes: Sizes) -> str:
    """``layers=48, width=3072``."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
