"""Which indices of a group matter: one number for each, high is kept.

A criterion by name, with options where it has any: ``magnitude``, ``random``, ``activation(sequence=mean, batch=l2)``
(``fxcompress.criteria``). Or the caller's own: a callable ``(program, group) -> tensor``, or tensors by group key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Dims, leaves
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.keep import coordinates
from fxcompress.program import Program
from fxcompress.statistics import Statistics, Watch

Score: TypeAlias = "str | Criterion | Callable[[Program, Group], Tensor] | Mapping[str, Tensor]"


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """Scores of groups; the fields are its options."""

    name: ClassVar[str]
    comparable: ClassVar[bool] = False  # are scores of different groups of one scale?

    @abstractmethod
    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        """The scores of a group, of shape ``group.sizes``."""

    def watches(self, axes: AxisMap, group: Group) -> list[Watch]:
        """What has to be observed on calibration batches. Raises CompressError where nothing can be."""
        return []

    @property
    def observes(self) -> bool:
        """Does it need calibration?"""
        return type(self).watches is not Criterion.watches

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        options = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True, kw_only=True)
class Own(Criterion):
    """Scores of the caller's own, compared as they are."""

    name: ClassVar[str] = "own"
    comparable: ClassVar[bool] = True
    given: Any

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        if not isinstance(self.given, Mapping):
            return self.given(program, group)
        if group.key not in self.given:
            raise CompressError(f"score= has no tensor for the group {group.key}")
        return self.given[group.key]


def scores(criterion: Criterion, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
    """The scores of a group, checked to be finite and of shape ``group.sizes``."""
    values = criterion.score(program, group, statistics, seed)
    if not isinstance(values, Tensor):
        raise CompressError(f"{group.key}: the scores are {quoted(values)}, not a tensor of shape {group.sizes}")
    if tuple(values.shape) != group.sizes:
        raise CompressError(f"{group.key}: the scores have shape {tuple(values.shape)}, the group {group.sizes}")
    if not torch.isfinite(values).all():
        raise CompressError(f"{group.key}: the scores are not finite")
    return values


def by_index(values: Tensor, dims: Dims, axes: AxisMap, group: Group) -> Tensor:
    """Sum the values of a tensor into the indices of a group: (sizes of the dims) -> group.sizes.

    Where the axis is found in several dims of the tensor, each of them counts.
    """
    out = torch.zeros(group.sizes, dtype=values.dtype)
    for i, dim in enumerate(dims):
        if group.axis in leaves(dim):
            out += _by_index_of(values, dims, i, axes, group)
    return out


def _by_index_of(values: Tensor, dims: Dims, own: int, axes: AxisMap, group: Group) -> Tensor:
    """The same for one dim that has the axis; its outer axes may be in other dims."""
    along, here = [*axes.outer[group.axis], group.axis], set(leaves(dims[own]))
    holders = [own if a in here else next(i for i, dim in enumerate(dims) if a in leaves(dim)) for a in along]
    others = [i for i in range(len(dims)) if i not in (own, *holders)]
    values = values.sum(others, keepdim=True) if others else values
    place, there = torch.zeros([], dtype=torch.long), torch.ones([], dtype=torch.bool)
    for axis, holder, size in zip(along, holders, group.sizes, strict=True):
        index = coordinates(dims[holder], [axis])[:, 0].view([-1 if i == holder else 1 for i in range(len(dims))])
        place, there = place * size + index, there & (index >= 0)
    place, there = place.expand(values.shape), there.expand(values.shape)
    flat = torch.zeros(torch.Size(group.sizes).numel(), dtype=values.dtype)
    return flat.index_add_(0, place[there], values[there]).view(group.sizes)


def best(values: Tensor, count: int) -> Tensor:
    """The ``count`` highest of every row, in ascending order of index; ties go to the lower index."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values
