"""What was decided, as data: which indices stay in each group, which modules are skipped.

A plan names groups by their keys and modules by their paths, so that it can be written as JSON, replayed on a model of
the same class and compared with another. Indices are written as ranges: ``"0-5,7,9-20"``; a list of such strings
stands for a choice that differs along an outer axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The decision of one pass: ``keep`` for cuts, ``remove`` for modules that are skipped."""

    name: str
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    remove: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.keep and not self.remove

    def to_json(self) -> dict[str, Any]:
        return {
            "pass": self.name,
            "keep": {key: write_ranges(index) for key, index in self.keep.items()},
            "remove": list(self.remove),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        keep = {key: read_ranges(text) for key, text in data["keep"].items()}
        return cls(data["pass"], keep, tuple(data["remove"]))


def write_ranges(index: Tensor) -> Any:
    """Indices as text, nested as the tensor is; the order of the indices is kept."""
    if index.dim() > 1:
        return [write_ranges(row) for row in index]
    runs: list[list[int]] = []
    for i in index.tolist():
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def read_ranges(text: Any) -> Tensor:
    """The inverse of ``write_ranges``. Raises ValueError for anything else."""
    if isinstance(text, list):
        return torch.stack([read_ranges(row) for row in text])
    if not isinstance(text, str):
        raise ValueError(f"kept indices are ranges like '0-5,7', not {text!r}")
    index: list[int] = []
    for run in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", run)
        if match is None:
            raise ValueError(f"{run!r} is not an index or a range of indices like '0-5'")
        index += range(int(match[1]), int(match[2] or match[1]) + 1)
    return torch.tensor(index, dtype=torch.long)
