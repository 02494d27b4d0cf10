"""Prunes the matrices of a program by a method for one matrix, block after block, and says what each of them lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from fxcompress.batches import Batch, require_fitting
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.progress import Progress
from fxcompress.projections import Projection
from fxcompress.record import Row
from fxcompress.sequential import Sequential
from fxcompress.shelf import Shelf
from fxcompress.weights import scores
from fxcompress.weights.compensation import none
from fxcompress.weights.gram import Gram
from fxcompress.weights.methods import Method, Pruned
from fxcompress.weights.pattern import parse

DAMPING = 0.01  # of the methods, where nothing is asked


@dataclass
class Solver:
    """``sparse``: the pattern of each parameter; ``program`` gets the new weights through the shelf."""

    method: Method
    options: Mapping[str, Any]
    program: Program
    sparse: Mapping[str, str]
    shelf: Shelf

    def by_weights_alone(self, chosen: Sequence[Projection], progress: Progress) -> dict[str, Row]:
        """The smallest weights go; no inputs are needed, and no loss is known."""
        rows: dict[str, Row] = {}
        with progress("weights", len(chosen)) as advance:
            for part, p in enumerate(chosen):
                rows |= self._taken(part) if self.shelf.holds(part) else self._put(part, [p], {})
                advance()
        return rows

    def by_inputs(self, chosen: Sequence[Projection], batches: Sequence[Batch], progress: Progress) -> dict[str, Row]:
        """By the inputs that each matrix has behind the pruned blocks before it."""
        if self.program.origin.config is not None:
            require_fitting(batches, self.program.origin.config)
        on = self.program.device
        batches = [{name: value.to(on) for name, value in batch.items()} for batch in batches]
        walk, rows = Sequential(self.program, chosen), dict[str, Row]()

        def done(number: int) -> bool:
            if self.shelf.holds(number):
                rows.update(self._taken(number))
            return self.shelf.holds(number)

        with progress("weights, block after block", len(walk.blocks)) as advance:
            walk.sweep(batches, lambda n, block: rows.update(self._put(n, block.due, walk.grams)), done, advance)
        return rows

    def _taken(self, part: int) -> dict[str, Row]:
        return {row["key"]: Row(**row) for row in self.shelf.take(part, self.program)}

    def _put(self, part: int, due: Sequence[Projection], grams: Mapping[Any, Gram]) -> dict[str, Row]:
        values, rows = {}, {}
        for p in due:
            values[p.name], rows[p.name] = self._pruned(p, grams)
        self.shelf.put(part, self.program, values, [asdict(row) for row in rows.values()])
        return rows

    def _pruned(self, p: Projection, grams: Mapping[Any, Gram]) -> tuple[Tensor, Row]:
        """A parameter's new value, and what became of it."""
        value, pattern = self.program.read(p.name).clone(), parse(self.sparse[p.name])
        told = _Told(p.name, value.shape[p.dim])
        for matrix, sources in zip(p.matrices(value), p.sources, strict=True):
            gram = grams.get(sources)
            if gram is None or bool(gram.dead.all()):
                matrix.copy_(none(matrix, pattern.mask(scores.magnitude(matrix), matrix == 0)))
                told.unseen += bool(grams)
                continue
            try:
                found = self.method(matrix, gram, pattern, **self.options)
            except CompressError as error:
                raise CompressError(f"{p.name}: {error}") from error
            matrix.copy_(found.weight)
            told.take(found, gram, self.options.get("damping", DAMPING))
        lines = value.numel() // value.shape[p.dim]
        zeros, asked = int((value == 0).sum()), pattern.sparsity * value.numel()
        return value, Row(p.name, "projection", value.numel(), asked, zeros, lines, told.why, told.loss)


@dataclass
class _Told:
    """What a user should know of a parameter's matrices."""

    name: str
    columns: int
    losses: list[float] = field(default_factory=list)
    unseen: int = 0  # matrices that no token reached
    fewest: float = math.inf  # tokens
    damping: float = 0.0  # more than was asked for

    def take(self, found: Pruned, gram: Gram, damping: float) -> None:
        self.losses.append(found.loss)
        self.fewest = min(self.fewest, gram.count)
        if found.damping is not None and found.damping > damping:
            self.damping = max(self.damping, found.damping)

    @property
    def loss(self) -> float | None:
        return sum(self.losses) / len(self.losses) if self.losses else None

    @property
    def why(self) -> str:
        said = []
        if self.unseen:
            said.append(f"no calibration token reached {self.unseen} of its matrices, which went by magnitude")
        if self.fewest < self.columns:
            said.append(f"seen by {self.fewest:,.0f} tokens, fewer than its {self.columns:,} columns")
        if self.damping:
            said.append(f"its inputs depend on each other: damped by {self.damping:g}")
        return "; ".join(said)
