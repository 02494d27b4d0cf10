"""Zeros in weight matrices, none of which changes its shape: one-shot, after training, by calibration.

    y = W x   ->   y = W' x      W' zero where its pattern says, tr (W - W') H (W - W')ᵀ small, H = mean of x xᵀ

Methods for one matrix are in ``fxcompress.weights.methods``, the way through the model in ``fxcompress.sequential``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from fxcompress.batches import Batch
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.outliers import outlier_watches, owl
from fxcompress.pipeline import WeightPass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress
from fxcompress.projections import Projection, projections
from fxcompress.record import Row
from fxcompress.shelf import Shelf
from fxcompress.solver import Solver
from fxcompress.statistics import Statistics, Watch
from fxcompress.weights.groups import require_few_sets
from fxcompress.weights.methods import METHODS
from fxcompress.weights.owl import require_room
from fxcompress.weights.pattern import NM, Pattern, Per, Unstructured, parse

Method = Literal["mrp", "sparsegpt", "wanda", "alps", "magnitude"]
Rule = Literal["S", "M"]
_DAMPED = ("mrp", "sparsegpt", "alps")


@dataclass(frozen=True, kw_only=True)
class PruneWeights(WeightPass):
    """Set the weights of least effect to zero, in all projections; stacked experts are matrices of their own.

    sparsity: the part that goes; or pattern: ``NM(keep=2, of=4)`` or "2:4", two of every four stay.
    per: with sparsity, whose weights are compared: those of the whole "matrix", or of each "row" as "wanda" does it.
    method: "mrp" (Pruning Foundation Models for High Accuracy without Retraining, Findings of EMNLP 2024), "sparsegpt"
    (arXiv 2301.00774), "alps" (2406.07831) and "wanda" (2306.11695) take calibration; "magnitude" none.
    mask, compensation: of "mrp", by rule "S", one weight at a time, or "M", many at once; by default M, but S for the
    mask of ``sparsity``. damping: what is added to H, as a fraction of its mean diagonal; more where it is singular.
    allocation: "owl" gives layers with more outliers less sparsity (arXiv 2310.05175), of the same mean.
    targets, skip: globs of parameter names. Without targets all projections are taken but those that give the model's
    output, that are an embedding's too, or that route to experts.
    """

    method: Method = "mrp"
    sparsity: float | None = None
    pattern: str | NM | None = None
    per: Per | None = None
    targets: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    mask: Rule | None = None
    compensation: Rule | None = None
    damping: float | None = None
    allocation: Literal["uniform", "owl"] = "uniform"

    def __post_init__(self) -> None:
        for option in ("targets", "skip"):
            given = getattr(self, option)
            object.__setattr__(self, option, (given,) if isinstance(given, str) else tuple(given))
        if isinstance(self.pattern, NM):
            object.__setattr__(self, "pattern", str(self.pattern))
        if (self.sparsity is None) == (self.pattern is None):
            raise CompressError("say how much by exactly one of sparsity=0.5, the part to remove, and pattern='2:4'")
        if self.per is not None and self.pattern is not None:
            raise CompressError(f"per={quoted(self.per)} goes with sparsity=: {self.pattern} is one for every group")
        self._check_method()
        if not isinstance(self.asked, NM) and self.pattern is not None:
            raise CompressError(f"pattern={quoted(self.pattern)} is no N:M pattern: write 2:4, or sparsity=0.5")
        if self.allocation not in ("uniform", "owl"):
            raise CompressError(f"allocation={quoted(self.allocation)} is unknown; there are uniform and owl")
        if self.allocation == "owl" and self.pattern is not None:
            raise CompressError(
                f"allocation='owl' gives each layer a sparsity of its own, {self.pattern} is one for all"
            )
        if self.allocation == "owl":
            require_room(self.asked.sparsity)

    def _check_method(self) -> None:
        if self.method not in get_args(Method):
            raise CompressError(f"method={quoted(self.method)} is unknown; there are {', '.join(get_args(Method))}")
        rules = {"mask": self.mask, "compensation": self.compensation}
        given = [name for name, rule in rules.items() if rule is not None]
        if given and self.method != "mrp":
            raise CompressError(f"{given[0]}= is an option of method='mrp', {self.method} has rules of its own")
        if any(rule not in (None, *get_args(Rule)) for rule in rules.values()):
            raise CompressError(f"mask={self.mask!r}, compensation={self.compensation!r}: rules are 'S' and 'M'")
        if self.mask == "M" and self.pattern is None:
            raise CompressError("mask='M' tries the sets of each group of an N:M pattern: with sparsity= it is 'S'")
        if isinstance(self.asked, NM) and self.method == "mrp" and self.mask != "S":
            require_few_sets(self.asked)
        if self.damping is not None and self.method not in _DAMPED:
            raise CompressError(f"damping= is of no use to method={self.method!r}, which inverts nothing")
        if self.damping is not None and not 0 <= self.damping < 1:
            raise CompressError(f"damping={self.damping} is outside [0, 1): it is a fraction, 0.01 as a rule")

    @property
    def asked(self) -> Pattern:
        """Of all matrices, but for an allocation."""
        return parse(str(self.pattern)) if self.pattern is not None else self._unstructured(self.sparsity or 0.0)

    def _unstructured(self, sparsity: float) -> Unstructured:
        return Unstructured(sparsity, self.per or ("row" if self.method == "wanda" else "matrix"))

    @property
    def observes(self) -> bool:
        return self.method != "magnitude" or self.allocation == "owl"

    @property
    def reruns(self) -> bool:
        return self.method != "magnitude"

    def check(self, program: Program) -> None:
        for p in self.selected(program):
            try:
                self.asked.check(p.columns)
            except CompressError as error:
                raise CompressError(f"{p.name}: {error}; leave it out by skip=['{p.name}']") from error
            _, rows, line = p.matrices(program.state[p.name]).shape
            if not 0 < self.asked.removed(rows, line) < rows * line:
                what = "nothing" if self.asked.sparsity < 0.5 else "everything"
                raise CompressError(f"{p.name}: sparsity={self.sparsity} of {rows} rows of {line} would remove {what}")
        self.watches(program)

    def watches(self, program: Program) -> list[Watch]:
        return outlier_watches(self.selected(program)) if self.allocation == "owl" else []

    def selected(self, program: Program) -> list[Projection]:
        """The parameters that are pruned. Raises CompressError for globs that find none."""
        there = projections(program)
        for option in ("targets", "skip"):
            for glob in getattr(self, option):
                if not any(_matches(program, p, [glob]) for p in there):
                    among = f", {there[0].name} among them" if there else ""
                    raise CompressError(
                        f"{self.name}: {option}={quoted(glob)} names none of the {len(there)} matrices that activations"
                        f" are multiplied by{among}"
                    )
        found = [p for p in there if (_matches(program, p, self.targets) if self.targets else not p.dense)]
        found = [p for p in found if not _matches(program, p, self.skip)]
        for p in found:
            if not p.sources:
                raise CompressError(f"{p.name} cannot be pruned: {p.dense}")
        if not found:
            raise CompressError(f"{self.name}: no matrix is left to prune of {len(there)} that the model has")
        return found

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        chosen = self.selected(program)
        sparse = {p.name: str(self.asked) for p in chosen}
        if self.allocation == "owl" and not program.is_meta:
            parts = owl(program, chosen, statistics, self.asked.sparsity)
            sparse = {name: str(self._unstructured(part)) for name, part in parts.items()}
        return Step(self.name, sparse=sparse), self._rows(program, sparse)

    def _rows(self, program: Program, sparse: Mapping[str, str]) -> list[Row]:
        """What each matrix is asked to lose, and why others are not."""
        rows = []
        for p in projections(program):
            weights = program.state[p.name].numel()
            if p.name not in sparse:
                why = "not in targets=" if self.targets else p.dense or "skip= leaves it out"
                rows.append(Row(p.name, "projection", weights, 0.0, 0, why=why))
                continue
            pattern, (matrices, lines, columns) = parse(sparse[p.name]), p.matrices(program.state[p.name]).shape
            asked, got = pattern.sparsity * weights, matrices * pattern.removed(lines, columns)
            rows.append(Row(p.name, "projection", weights, asked, got, matrices * pattern.lines(lines)))
        return rows

    def solve(
        self, program: Program, step: Step, batches: Sequence[Batch] | None, shelf: Shelf, progress: Progress
    ) -> list[Row]:
        given = {"mask": self.mask, "compensation": self.compensation, "damping": self.damping}
        options = {name: value for name, value in given.items() if value is not None}
        solver = Solver(METHODS[self.method], options, program, step.sparse, shelf)
        chosen = [p for p in projections(program) if p.name in step.sparse]
        if self.method == "magnitude":
            solver.by_weights_alone(chosen, progress)
        else:
            assert batches is not None, "the pipeline has asked for them"
            solver.by_inputs(chosen, batches, progress)
        return [solver.rows.get(row.key, row) for row in self._rows(program, step.sparse)]


def _matches(program: Program, p: Projection, globs: Iterable[str]) -> bool:
    """By any of its names, where it is tied."""
    return any(fnmatchcase(name, glob) for glob in globs for name in program.names.get(p.name, (p.name,)))
