"""What is to be removed from a weight (m, n): a part of it, or all but N of every M consecutive weights of a row.

    Unstructured(0.5)           round(0.5 m n) of the matrix          "0.5"
    Unstructured(0.5, "row")    round(0.5 n) of every row             "0.5 per row"
    NM(2, 4)                    keeps 2 of columns 4i, …, 4i + 3      "2:4"

The lowest scores go, of equal ones the first in position. Weights that are zero already go before all others and are
counted; where there are more of them than was asked, all stay zero.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fxcompress.errors import CompressError

Per = Literal["row", "matrix"]


@dataclass(frozen=True)
class Unstructured:
    """The lowest round(sparsity · m · n) weights of the matrix, or round(sparsity · n) of every row."""

    sparsity: float
    per: Per = "matrix"

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity={self.sparsity} is outside (0, 1): it is the part to remove, 0.5 for a half")
        if self.per not in get_args(Per):
            raise CompressError(f"per={self.per!r} is unknown: weights are compared per 'row' or per 'matrix'")

    def __str__(self) -> str:
        return f"{self.sparsity:.12f}".rstrip("0") + (" per row" if self.per == "row" else "")

    def check(self, columns: int) -> None:
        """Every number of columns will do."""

    def lines(self, rows: int) -> int:
        """Of a matrix's lines each loses as many: its rows, or all of it as one."""
        return rows if self.per == "row" else 1

    def removed(self, rows: int, columns: int) -> int:
        """How many weights of a matrix go."""
        return rows * round(self.sparsity * columns) if self.per == "row" else round(self.sparsity * rows * columns)

    def missing(self, zero: Tensor) -> int:
        """How many weights would have to be zero besides, of matrices (…, m, n) of which these are."""
        lines = zero if self.per == "row" else zero.flatten(-2)
        return int((round(self.sparsity * lines.shape[-1]) - lines.sum(-1)).clamp(min=0).sum())

    def mask(self, scores: Tensor, zero: Tensor | None = None) -> Tensor:
        """Bool (m, n), True where a weight stays, from scores (m, n). zero: bool (m, n), weights that are zero now."""
        return self.part(scores, torch.zeros_like(scores, dtype=torch.bool) if zero is None else zero, 0)

    def part(self, scores: Tensor, zero: Tensor, start: int, plan: Tensor | None = None) -> Tensor:
        """The mask of columns ``start`` … start + b − 1 from their scores (m, b), with ``zero`` of all (m, n).

        Each part bears an even share of what is asked of the whole, or that of ``plan``, a mask (m, n) of this pattern:
        the parts add up to it exactly.
        """
        stop = start + scores.shape[1]
        if plan is None:
            count = self._removed_before(zero, stop) - self._removed_before(zero, start)
        else:
            gone = ~plan[:, start:stop]
            count = gone.sum()[None] if self.per == "matrix" else gone.sum(1)
        scores, here = scores.masked_fill(zero[:, start:stop], -math.inf), zero[:, start:stop]
        if self.per == "matrix":
            return ~_lowest(scores.reshape(1, -1), count).view_as(scores) & ~here
        return ~_lowest(scores, count) & ~here

    def _removed_before(self, zero: Tensor, column: int) -> Tensor:
        """How many weights go from the columns before this one: of every row (m,), or of all together (1,)."""
        lines = zero.T.reshape(1, -1) if self.per == "matrix" else zero  # a matrix is one line, column after column
        size, end = lines.shape[1], column * lines.shape[1] // zero.shape[1]
        zeros, all_zeros = lines[:, :end].sum(1), lines.sum(1)
        rest = (round(self.sparsity * size) - all_zeros).clamp(min=0)
        share = (end - zeros).double() / (size - all_zeros).clamp(min=1)  # of the weights that are not zero
        return zeros + (rest * share).round().long()


@dataclass(frozen=True)
class NM:
    """N:M sparsity: exactly ``keep`` of every ``of`` consecutive weights of a row stay."""

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise CompressError(f"{self.keep}:{self.of} is no pattern: N:M keeps N of M weights, with 0 < N < M")

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.of

    def check(self, columns: int) -> None:
        """Raises CompressError where the pattern does not divide the number of columns."""
        if columns % self.of:
            near = columns // self.of * self.of
            raise CompressError(
                f"{self} needs groups of {self.of} weights, and rows of {columns} have {columns - near} left over;"
                f" the nearest sizes are {near} and {near + self.of}"
            )

    def lines(self, rows: int) -> int:
        """Of a matrix's rows each loses as many."""
        return rows

    def removed(self, rows: int, columns: int) -> int:
        """How many weights of a matrix go."""
        return rows * columns // self.of * (self.of - self.keep)

    def missing(self, zero: Tensor) -> int:
        """How many weights would have to be zero besides, of matrices (…, m, n) of which these are."""
        self.check(zero.shape[-1])
        here = zero.unflatten(-1, (-1, self.of)).sum(-1)
        return int((self.of - self.keep - here).clamp(min=0).sum())

    def mask(self, scores: Tensor, zero: Tensor | None = None) -> Tensor:
        """Bool (m, n), True where a weight stays, from scores (m, n). zero: bool (m, n), weights that are zero now."""
        return self.part(scores, torch.zeros_like(scores, dtype=torch.bool) if zero is None else zero, 0)

    def part(self, scores: Tensor, zero: Tensor, start: int, plan: Tensor | None = None) -> Tensor:
        """The mask of columns ``start`` … start + b − 1 from their scores (m, b), with ``zero`` of all (m, n).

        Every group bears the same share: a ``plan`` could not differ.
        """
        self.check(scores.shape[1])
        assert start % self.of == 0, "a part begins where a group does"
        here = zero[:, start : start + scores.shape[1]]
        groups = scores.masked_fill(here, -math.inf).reshape(-1, self.of)
        count = torch.full(groups.shape[:1], self.of - self.keep, device=scores.device)
        return ~_lowest(groups, count).view_as(scores) & ~here


Pattern = Unstructured | NM


def parse(text: str) -> Pattern:
    """The pattern that a text stands for, as ``str`` writes it. Raises CompressError for others."""
    if match := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
        return NM(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(0?\.\d{1,16})( per row)?", text):
        return Unstructured(float(match[1]), "row" if match[2] else "matrix")
    raise CompressError(f"{text[:40]!r} is no pattern: write 2:4 to keep 2 of every 4 weights, 0.5 to remove a half")


def _lowest(scores: Tensor, count: Tensor) -> Tensor:
    """Bool (lines, b): the ``count`` (lines,) lowest scores of every line (lines, b), the first of equal ones."""
    order = scores.argsort(dim=1, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)
