"""Run passes over a program, each verified before the next.

A pass is a frozen dataclass: its fields are its hyperparameters. It decides (``decide``), and that is all: the runner
clones, rewrites, refreshes, checks the laws and writes the record. A pass over weights also solves for their values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from fxcompress import verify
from fxcompress.axes import AxisMap
from fxcompress.batches import Batch, batches_of
from fxcompress.border import Border
from fxcompress.bounded import quoted
from fxcompress.cost import Cost
from fxcompress.errors import CompressError
from fxcompress.gather import gather
from fxcompress.journal import Journal
from fxcompress.kept_statistics import KeptStatistics
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.record import Record, Row
from fxcompress.rewrite import keep_by_axis, rewrite
from fxcompress.score import Criterion
from fxcompress.shelf import Shelf
from fxcompress.statistics import Statistics, Watch

Kind = Literal["structure", "weights", "runtime"]
_ORDER: tuple[Kind, ...] = ("structure", "weights", "runtime")


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A decision about a program. Passes run in the order structure, weights, runtime."""

    kind: ClassVar[Kind] = "structure"
    cuts: ClassVar[bool] = True  # tensors, and so the patterns of their zeros

    @abstractmethod
    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        """What to cut or remove, and a row for everything that was considered. Changes nothing."""

    def check(self, program: Program) -> None:
        """Raise CompressError for what cannot be done, as far as it can be said before any calibration."""
        return None

    def watches(self, program: Program) -> list[Watch]:
        """What ``decide`` needs to be observed on calibration batches."""
        return []

    @property
    def observes(self) -> bool:
        """Does it need calibration?"""
        return False

    @property
    def reruns(self) -> bool:
        """Does it run the model on calibration data when it has changed, so that no statistics will do?"""
        return False

    @property
    def name(self) -> str:
        return type(self).__name__

    def options(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as a recipe would say them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {f.name: _plain(values[f.name]) for f in fields(self) if f.init and values[f.name] != f.default}


@dataclass(frozen=True, kw_only=True)
class WeightPass(Pass):
    """A pass that leaves the graph as it is and gives matrices other values. What it decides on are their patterns."""

    kind: ClassVar[Kind] = "weights"
    cuts: ClassVar[bool] = False

    @abstractmethod
    def solve(
        self, program: Program, step: Step, batches: Sequence[Batch] | None, shelf: Shelf, progress: Progress
    ) -> list[Row]:
        """Give the program, which is a clone, the weights that were decided on, through the shelf."""


@dataclass
class Pipeline:
    """Passes in the order in which they run, on one program after the other."""

    passes: Sequence[Pass]
    verify: bool = True
    progress: Progress = silent
    journal: Journal | None = None
    statistics_file: str | Path | None = None
    records: list[Record] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    _borders: list[tuple[Border, str]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        for earlier, later in zip(self.passes, self.passes[1:], strict=False):
            if _ORDER.index(earlier.kind) > _ORDER.index(later.kind):
                raise CompressError(f"{later.name} ({later.kind}) after {earlier.name} ({earlier.kind}) would undo it")

    def run(self, program: Program, calibration: Any = None) -> Program:
        batches = None if calibration is None else batches_of(calibration)
        names = [f"pass {i} {p.name}" for i, p in enumerate(self.passes)]
        for p in self.passes:
            _require_order(p, program)
            if p.reruns and batches is None and not program.is_meta:
                raise CompressError(f"{p.name} runs the pruned model on text: pass calibration=, batches of token ids")
        ahead = [p for p, what in zip(self.passes, names, strict=True) if not self._is_done(what)]
        self._observe_once(ahead, program, batches)
        for p, what in zip(self.passes, names, strict=True):
            before, program = program, self._run_pass(what, p, program, batches)
            axes = before.get(AxisMap)
            keep = keep_by_axis(axes, self.records[-1].step.keep)
            self.statistics = self.statistics.cut(axes, keep)
            self._borders.append((Border(axes, keep), p.name))
        return program

    def _is_done(self, what: str) -> bool:
        return self.journal is not None and what in self.journal and Shelf(what, self.journal).is_whole

    def _run_pass(self, what: str, p: Pass, program: Program, batches: list | None) -> Program:
        if self._is_done(what):
            assert self.journal is not None
            record = Record.from_json(self.journal.stage(what, dict))
            after = self._rewritten(p, program, record.step)
            Shelf(what, self.journal).take_all(after)
        else:
            record, after = self._decided(what, p, program, batches)
            if self.journal is not None:
                self.journal.stage(what, record.to_json)
        self.records.append(record)
        return after

    def _decided(self, what: str, p: Pass, program: Program, batches: list | None) -> tuple[Record, Program]:
        p.check(program)
        self._observe([p], program, batches)
        with self.progress(f"{p.name}: scores"):
            step, rows = p.decide(program, self.statistics)
        after = self._rewritten(p, program, step)
        if isinstance(p, WeightPass) and not program.is_meta:
            here = None if batches is None else self._for_program(batches)
            rows = p.solve(after, step, here, Shelf(what, self.journal), self.progress)
        laws: list[verify.Law] = []
        if self.verify and not step.is_empty:
            with self.progress(f"{p.name}: proof"):
                laws = verify.check(program, after, step)
            verify.require(laws, p.name)
        before, now = program.get(Cost).figures, after.get(Cost).figures
        return Record(p.name, p.options(), tuple(rows), tuple(laws), before, now, step), after

    def _rewritten(self, p: Pass, program: Program, step: Step) -> Program:
        with self.progress(f"{p.name}: rewrite"):
            after = program.clone()
            rewrite(after, step)
        return after

    def _observe_once(self, passes: Sequence[Pass], program: Program, batches: list | None) -> None:
        """What all passes need, gathered on the original, or read from a file that has it already."""
        if self.statistics_file is None or program.is_meta or not any(p.observes for p in passes):
            self._observe(passes, program, batches)
            return
        kept = KeptStatistics.of(self.statistics_file, program, batches)
        self.statistics = before = kept.read(program)
        self._observe(passes, program, batches)
        if len(self.statistics) > len(before):
            kept.write(self.statistics)

    def _observe(self, passes: Sequence[Pass], program: Program, batches: list | None) -> None:
        """Gather what these passes need and is not there: once for all of them, on the program as it is given."""
        if program.is_meta:
            return
        wanted = [(p, self.statistics.missing(p.watches(program))) for p in passes]
        asking = [p for p, watches in wanted if watches]
        if not asking:
            return
        if batches is None:
            raise CompressError(f"{asking[0].name} scores by activations: pass calibration=, batches of token ids")
        missing = [watch for _, watches in wanted for watch in watches]
        here = self._for_program(batches)
        self.statistics = self.statistics | gather(program, list(dict.fromkeys(missing)), here, self.progress)

    def _for_program(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches have the token ids of the original, which a pass may have given other numbers."""
        for border, name in self._borders:
            batches = [border.batch(batch, name) for batch in batches]
        return batches


def _require_order(p: Pass, program: Program) -> None:
    """Raise CompressError where a cut would go through what was pruned, or kernels would read weights from files."""
    if p.kind == "runtime" and program.readers:
        raise CompressError(
            f"{p.name} is for a model that runs from memory, and the weights of this one are read from files: apply it"
            " to fxcompress.load(...) of the result, or to the model itself"
        )
    if p.cuts and program.sparse:
        name, pattern = next(iter(program.sparse.items()))
        raise CompressError(
            f"{p.name} would cut {name}, whose weights were pruned to {pattern}: cut the original, and prune the"
            " weights of the result"
        )


def listed(passes: Any) -> tuple[Pass, ...]:
    """Passes that were given in some sequence. Raises CompressError for anything else in it, and for no sequence."""
    if isinstance(passes, str) or not isinstance(passes, Iterable):
        raise CompressError(f"passes are given in a list, [PruneFFN(ratio=0.25)], not as {quoted(passes)}")
    given = tuple(passes)
    for p in given:
        if not isinstance(p, Pass):
            raise CompressError(f"{quoted(p)} is no pass: passes are objects, PruneFFN(ratio=0.25)")
    return given


def check_values(program: Program) -> None:
    """Raise CompressError where a weight holds NaN or Inf: no score of it would mean anything."""
    if program.is_meta:
        return
    for name, _ in program.parameters():
        value = program.read(name)
        finite = torch.isfinite(value.float() if value.element_size() == 1 else value)  # not defined for float8
        if not finite.all():
            bad = int((~finite).sum())
            raise CompressError(f"{name} {tuple(value.shape)} holds {bad} values that are NaN or Inf")


def _plain(value: Any) -> Any:
    """An option as JSON can hold it; the caller's own scores are named by what they are."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Criterion):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, dict):
        return [_plain(item) for item in value]
    return f"<{getattr(value, '__name__', type(value).__name__)}>"
