"""What was decided, as data: which indices stay in each group, which modules are skipped, which weights get zeros.

A plan names groups by their keys and modules by their paths, so that it can be written as JSON, replayed on a model of
the same class and compared with another. Indices are written as ranges: ``"0-5,7,9-20"``; a list of such strings
stands for a choice that differs along an outer axis. A range is short however much it stands for, so what a text may
expand to is bounded.
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxcompress.errors import CompressError

MOST_INDICES = 1 << 25  # 256 MB: the neurons of 256 experts in each of 60 layers are fewer
_MOST_OUTER = 3  # axes along which a choice differs
_ROW = 128  # indices that take as much memory as a row by itself
_RUN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?:,(?=[0-9])|\Z)")


@dataclass(frozen=True)
class Step:
    """The decision of one pass: ``keep`` for cuts, ``remove`` for modules that are skipped.

    sparse: by parameter, the pattern of its zeros, "0.5" or "2:4"; which weights they are, the values say.
    kernels: by parameter, the sparse op that multiplies by it. It was chosen on this machine, for the program that runs
    there: JSON leaves it out.
    """

    name: str
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    sparse: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.keep and not self.remove and not self.sparse and not self.kernels

    def to_json(self) -> dict[str, Any]:
        written = {
            "pass": self.name,
            "keep": {key: write_ranges(index) for key, index in self.keep.items()},
            "remove": list(self.remove),
        }
        return written | ({"sparse": dict(self.sparse)} if self.sparse else {})

    @classmethod
    def from_json(cls, data: Any, at_most: int = MOST_INDICES) -> Step:
        """The inverse of ``to_json``. Raises CompressError for anything else, and for more than ``at_most`` indices."""
        match data:
            case {"pass": str(name), "keep": dict(texts), "remove": list(paths), **others}:
                if not all(isinstance(text, str) for text in (*texts, *paths)):
                    raise CompressError(f"the step {reprlib.repr(name)} names groups or modules by what is no text")
                return cls(
                    name,
                    _read_keep(texts, at_most),
                    tuple(paths),
                    _read_sparse({str(field): value for field, value in others.items()}),
                )
        raise CompressError("a step has the fields pass, keep and remove: a name, indices by group, a list of modules")


def read_steps(data: Any, at_most: int = MOST_INDICES) -> list[Step]:
    """The steps of a plan. Raises CompressError for anything else, and for more than ``at_most`` indices in all."""
    if not isinstance(data, list):
        raise CompressError(f"a plan is a list of steps, not {reprlib.repr(data)}")
    steps: list[Step] = []
    for i, entry in enumerate(data):
        try:
            steps.append(Step.from_json(entry, at_most))
        except CompressError as error:
            raise CompressError(f"steps[{i}]: {error}") from error
        at_most -= sum(map(_cost, steps[-1].keep.values()))
    return steps


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


def read_ranges(text: Any, at_most: int = MOST_INDICES) -> Tensor:
    """The inverse of ``write_ranges``. Raises CompressError for anything else and for more than ``at_most`` indices."""
    return _read_rows(text, at_most, _MOST_OUTER)


def _read_keep(texts: Mapping[str, Any], at_most: int) -> dict[str, Tensor]:
    keep: dict[str, Tensor] = {}
    for key, text in texts.items():
        try:
            keep[key] = read_ranges(text, at_most)
        except CompressError as error:
            raise CompressError(f"{reprlib.repr(key)}: {error}") from error
        at_most -= _cost(keep[key])
    return keep


def _read_sparse(fields: Mapping[str, Any]) -> dict[str, str]:
    """The one field that a step may have besides."""
    sparse = fields.get("sparse", {})
    if not fields.keys() <= {"sparse"} or not isinstance(sparse, dict):
        raise CompressError(f"a step has no fields {reprlib.repr(sorted(fields))}; sparse is patterns by parameter")
    if not all(isinstance(text, str) for entry in sparse.items() for text in entry):
        raise CompressError("sparse is patterns by parameter, {'lm_head.weight': '2:4'}, all of them text")
    return dict(sparse)


def _read_rows(text: Any, at_most: int, outer: int) -> Tensor:
    if isinstance(text, str):
        return _read_row(text, at_most)
    if not isinstance(text, list) or not text or not outer:
        raise CompressError(f"kept indices are ranges like '0-5,7' or rows of them, not {reprlib.repr(text)}")
    rows: list[Tensor] = []
    for row in text:
        rows.append(_read_rows(row, at_most, outer - 1))
        at_most -= _cost(rows[-1])
        if rows[-1].shape != rows[0].shape:
            raise CompressError(
                f"rows of kept indices have the shapes {tuple(rows[0].shape)} and {tuple(rows[-1].shape)}"
            )
    return torch.stack(rows)


def _read_row(text: str, at_most: int) -> Tensor:
    first, length = array("q"), array("q")
    at = total = 0
    while at < len(text):
        run = _RUN.match(text, at)
        if run is None or int(run[2] or run[1]) < int(run[1]):
            raise CompressError(f"kept indices are ranges like '0-5,7', not {reprlib.repr(text[at:])}")
        first.append(int(run[1]))
        length.append(int(run[2] or run[1]) + 1 - first[-1])
        at, total = run.end(), total + length[-1]
        if total > at_most:
            raise CompressError(f"{reprlib.repr(text)} stands for too many indices: at most {MOST_INDICES:,} are read")
    counts = torch.tensor(length, dtype=torch.long)
    shift = torch.tensor(first, dtype=torch.long) - (counts.cumsum(0) - counts)
    return shift.repeat_interleave(counts) + torch.arange(total)


def _cost(index: Tensor) -> int:
    """The memory that was taken, in indices: a row takes some even when it is empty."""
    return index.numel() + _ROW * math.prod(index.shape[:-1])
