"""Prunes the matrices of a program by a method for one matrix, block after block, and says what each of them lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from fxcompress.batches import Batch, require_fitting
from fxcompress.bounded import one_line
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.progress import Progress
from fxcompress.projections import Projection, layer_of
from fxcompress.record import Row
from fxcompress.sequential import Inputs, Sequential
from fxcompress.shelf import Shelf
from fxcompress.weights import scores
from fxcompress.weights.compensation import none
from fxcompress.weights.gram import Gram
from fxcompress.weights.methods import Method, Pruned
from fxcompress.weights.pattern import Pattern, parse

DAMPING = 0.01  # of the methods, where nothing is asked


@dataclass
class Solver:
    """``sparse``: the pattern of each parameter; ``program`` gets the new weights through the shelf."""

    method: Method
    options: Mapping[str, Any]
    program: Program
    sparse: Mapping[str, str]
    shelf: Shelf
    rows: dict[str, Row] = field(default_factory=dict)
    observes: bool = False
    _begun: dict[str, _Begun] = field(default_factory=dict)  # the parameters of the block that is in work

    def by_weights_alone(self, chosen: Sequence[Projection], progress: Progress) -> None:
        """The smallest weights go; no inputs are needed, and no loss is known."""
        layers: dict[str, list[Projection]] = {}
        for p in chosen:  # a file for each matrix would be more than a process may have open
            layers.setdefault(layer_of(self.program, p.name), []).append(p)
        with progress("weights", len(layers)) as advance:
            for part, due in enumerate(layers.values()):
                if not self.has(part):
                    self.finish(part, due)
                advance()

    def by_inputs(self, chosen: Sequence[Projection], batches: Sequence[Batch], progress: Progress) -> None:
        """By the inputs that each matrix has behind the pruned blocks before it."""
        if self.program.origin.config is not None:
            require_fitting(batches, self.program.origin.config)
        on = self.program.device
        batches = [{name: value.to(on) for name, value in batch.items()} for batch in batches]
        walk, self.observes = Sequential(self.program, chosen), True
        with progress("weights, block after block", len(walk.blocks)) as advance:
            try:
                walk.sweep(batches, self, advance)
            except TypeError as error:  # inputs of other names
                raise CompressError(f"the calibration does not fit the model: {one_line(error)}") from error

    def has(self, number: int) -> bool:
        """Take over what an earlier run has finished."""
        if not self.shelf.holds(number):
            return False
        self.rows |= {row["key"]: Row(**row) for row in self.shelf.take(number, self.program)}
        return True

    def solve(self, due: Sequence[Projection], grams: Mapping[Inputs, Gram]) -> None:
        """One matrix after the other: those that read the same inputs come together, and share the factor of H."""
        last: Gram | None = None
        for p in due:
            for i, inputs in enumerate(p.sources):
                if inputs not in grams or bool(grams[inputs].dead.all()):
                    continue
                if last is not None and last is not grams[inputs]:
                    last.forget()  # several times the size of H
                last = grams[inputs]
                self._solve(p, i, last)

    def _solve(self, p: Projection, i: int, gram: Gram) -> None:
        begun = self._of(p)
        matrix = p.matrices(begun.value)[i]
        try:
            found = self.method(matrix, gram, parse(self.sparse[p.name]), **self.options)
        except CompressError as error:
            raise CompressError(f"{p.name}: {error}") from error
        matrix.copy_(found.weight)
        begun.take(i, found, gram, self.options.get("damping", DAMPING))

    def finish(self, number: int, due: Sequence[Projection]) -> None:
        """Matrices that nothing has reached go by magnitude."""
        pattern = {p.name: parse(self.sparse[p.name]) for p in due}
        for p in due:
            begun = self._of(p)
            for i, matrix in enumerate(p.matrices(begun.value)):
                if i not in begun.losses:
                    matrix.copy_(none(matrix, pattern[p.name].mask(scores.magnitude(matrix), matrix == 0)))
        rows = {p.name: self._of(p).row(p, pattern[p.name], self.observes) for p in due}
        values = {p.name: self._of(p).value for p in due}
        self.shelf.put(number, self.program, values, [asdict(row) for row in rows.values()])
        self.rows |= rows
        self._begun = {}

    def _of(self, p: Projection) -> _Begun:
        if p.name not in self._begun:
            self._begun[p.name] = _Begun(self.program.read(p.name).clone())
        return self._begun[p.name]


@dataclass
class _Begun:
    """A parameter on its way to its new value, and what a user should know of its matrices."""

    value: Tensor
    losses: dict[int, float] = field(default_factory=dict)  # by matrix
    fewest: float = math.inf  # tokens
    damping: float = 0.0  # more than was asked for

    def take(self, i: int, found: Pruned, gram: Gram, damping: float) -> None:
        self.losses[i] = found.loss
        self.fewest = min(self.fewest, gram.count)
        if found.damping is not None and found.damping > damping:
            self.damping = max(self.damping, found.damping)

    def row(self, p: Projection, pattern: Pattern, observed: bool) -> Row:
        weights, zeros = self.value.numel(), int((self.value == 0).sum())
        matrices, rows, _ = p.matrices(self.value).shape
        loss = sum(self.losses.values()) / len(self.losses) if self.losses else None
        why = self._why(p, len(p.sources) - len(self.losses) if observed else 0)
        asked, step = pattern.sparsity * weights, matrices * pattern.lines(rows)
        return Row(p.name, "projection", weights, asked, zeros, step, why, loss)

    def _why(self, p: Projection, unseen: int) -> str:
        said = []
        if unseen:
            said.append(f"no calibration token reached {unseen} of its matrices, which went by magnitude")
        if self.fewest < p.columns:
            said.append(f"seen by {self.fewest:,.0f} tokens, fewer than its {p.columns:,} columns")
        if self.damping:
            said.append(f"its inputs depend on each other: damped by {self.damping:g}")
        return "; ".join(said)
