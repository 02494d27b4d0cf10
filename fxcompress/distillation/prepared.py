"""All that is done before the first step: what cannot work is refused, the rest is opened, moved and measured.

What can be told from configs and text is told before weights are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fxcompress import compat
from fxcompress.batches import require_fitting
from fxcompress.compressed import CompressedModel
from fxcompress.distillation.distiller import Distiller
from fxcompress.distillation.estimate import NOTHING, Estimate, measured
from fxcompress.distillation.evaluate import Held
from fxcompress.distillation.float8 import convertible, require_float8
from fxcompress.distillation.halves import Halves, halves_of
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.pair import placed, require_pair, require_same_size, tokenizer_of
from fxcompress.distillation.ranks import Ranks, together
from fxcompress.distillation.rows import Rows, rows_of
from fxcompress.distillation.shards import shard
from fxcompress.distillation.states import States, pairs_of
from fxcompress.distillation.student import Student
from fxcompress.distillation.taught import probe, taught
from fxcompress.distillation.teacher import Online, Teacher
from fxcompress.distillation.training import Training
from fxcompress.distillation.zeros import Zeros
from fxcompress.errors import CompressError
from fxcompress.export.files import prepare_output
from fxcompress.kept_statistics import digest
from fxcompress.progress import Progress, silent


@dataclass(frozen=True)
class Request:
    """What ``distill`` was asked for. teacher: None to train on the text alone. to_be_saved: a result of fxcompress is
    made of the student. out: a directory that has to be writable."""

    student: Any
    teacher: Any
    data: Any
    objective: Objective
    training: Training
    held_out: Any = None
    length: int = 512
    offline: Path | None = None
    to_be_saved: bool = False
    progress: Progress = silent
    out: str | Path | None = None


@dataclass(frozen=True)
class Prepared:
    """Student and teacher on their device, with the rows, and what the user should know before training begins."""

    request: Request
    student: Student
    teacher: Teacher | None
    taught_by: str  # the teacher's hash, where it is needed
    distiller: Distiller
    rows: Rows
    steps: int
    held: Held | None
    zeros: Zeros
    estimate: Estimate
    vocabulary: int
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    made_of: str = ""  # the student's hash before it was trained, where it is needed
    in_float8: Sequence[str] = ()  # linear layers of the student
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def prepared(request: Request) -> Iterator[Prepared]:
    """Raises CompressError for what cannot be carried out."""
    with together(request.training.where()) as ranks, contextlib.ExitStack() as stack:
        if not ranks.first:
            request = replace(request, progress=silent)
        with ranks.agreeing():
            ready = stack.enter_context(_opened(request, ranks))
        yield _spread(ready)


@contextlib.contextmanager
def _opened(request: Request, ranks: Ranks) -> Iterator[Prepared]:
    """Student and teacher side by side, and on their device if there is one process."""
    training, progress = request.training, request.progress
    student_given, teacher_given = placed(request.student), placed(request.teacher)
    if request.out is not None and ranks.first:
        prepare_output(request.out, original=student_given if isinstance(student_given, Path) else None)
    notes = [note] if teacher_given is not None and (note := require_pair(student_given, teacher_given)) else []
    tokenizer = tokenizer_of(student_given) or tokenizer_of(teacher_given)
    _require_objective(request)
    if ranks.several:
        _require_spread(training)
    rows, held_rows = _rows(request, tokenizer)
    steps = training.number_of_steps(len(rows), ranks.world)
    with progress("opening the student"):
        student = Student.of(student_given, request.to_be_saved)
    if ranks.several and student.graph_alone:
        raise CompressError(f"no config says what the student is ({student.graph_alone}): it trains in one process")
    _require_fitting(rows, held_rows, student.module)
    with taught(request, teacher_given, rows, ranks) as (teacher, taught_by):
        made_of = digest([dict(student.module.state_dict())]) if request.to_be_saved and ranks.first else ""
        device = torch.device("cpu") if ranks.several else training.where()
        student.module.to(device)
        in_float8 = _in_float8(student, training)
        halves, vocabulary = _compared(student, teacher, rows, device)
        if training.compile:
            halves = _compiled(halves, teacher)
        states = _states(request.objective, student, teacher, probe(rows).to(device))
        distiller = Distiller(student.module, halves, teacher, request.objective, training.chunk, states)
        zeros = Zeros(student.module, student.sparse)
        notes += _notes(student, halves, teacher, zeros)
        if training.gradient_checkpointing:
            _checkpoint_gradients(student.module)
        held = None
        if held_rows is not None:
            where = (training.chunk, training.where(), training.computes_in())
            held = Held(held_rows, training.batch_size, *where, progress)
        known = (vocabulary, ranks, made_of, in_float8, notes)
        yield Prepared(request, student, teacher, taught_by, distiller, rows, steps, held, zeros, NOTHING, *known)


def _spread(ready: Prepared) -> Prepared:
    """Spread over the processes, if there are several, and with what one batch takes."""
    if ready.ranks.several:
        shard(ready.distiller, ready.zeros, ready.request.training, ready.ranks)
    with ready.request.progress("one batch, to estimate memory and time"):
        return replace(ready, estimate=measured(ready))


def _require_spread(training: Training) -> None:
    """Raise CompressError for what only one process does."""
    if training.float8 is not None:
        raise CompressError("FP8 over several processes is not here: leave it out, or train in one process")
    if training.more:
        raise CompressError(
            f"{', '.join(training.more)}: several processes train without transformers' Trainer, which has these"
            " options; leave them out, or train in one process"
        )
    if training.compile:
        raise CompressError(
            "compiled models over several processes are not here: leave it out, or train in one process"
        )


def _in_float8(student: Student, training: Training) -> list[str]:
    """The layers of the student that compute in FP8."""
    if training.float8 is None:
        return []
    if student.graph_alone:
        raise CompressError(f"no config says what the student is ({student.graph_alone}): it trains without FP8")
    require_float8(training.where(), training.float8)
    return convertible(student.module, training.float8)


def _rows(request: Request, tokenizer: Path | None) -> tuple[Rows, Rows | None]:
    with request.progress("rows of the data"):
        rows = rows_of(request.data, tokenizer, request.length)
        held = None if request.held_out is None else rows_of(request.held_out, tokenizer, request.length)
    return rows, held


def _require_fitting(rows: Rows, held: Rows | None, model: Any) -> None:
    config = model.program.origin.config if isinstance(model, CompressedModel) else model.config
    for some in (rows, held):
        if some is not None and config is not None:
            require_fitting(({"input_ids": row["input_ids"][None]} for row in some.rows), config)


def _compared(student: Student, teacher: Teacher | None, rows: Rows, device: torch.device) -> tuple[Halves, int]:
    """The student taken apart, and the size of its logits, which is the teacher's."""
    ids = probe(rows).to(device)
    halves = halves_of(student.module, ids)
    with torch.no_grad():
        size = halves.tail(halves.body(input_ids=ids)[0]).shape[-1]
    require_same_size(size, None if teacher is None else teacher.vocabulary)
    return halves, size


def _compiled(halves: Halves, teacher: Teacher | None) -> Halves:
    """The student's halves, and in its place the teacher's."""
    torch.compiler.reset()  # a class that it knows in another size would be compiled for changing sizes
    if isinstance(teacher, Online):
        teacher.halves = teacher.halves.compiled()
    return halves.compiled()


def _states(objective: Objective, student: Student, teacher: Teacher | None, ids: Tensor) -> States | None:
    if not objective.states:
        return None
    if not isinstance(teacher, Online):
        raise CompressError("intermediate states are those of a teacher that runs: leave out offline, or states")
    torch.manual_seed(0)  # of the map between two widths
    return States(student.module, teacher.model, pairs_of(student, teacher.model, objective.pairs), ids).to(ids.device)


def _require_objective(request: Request) -> None:
    """Raise CompressError for options of a teacher that there is none for, or that says too little."""
    if request.teacher is None and (request.objective != Objective() or request.offline is not None):
        raise CompressError("without a teacher the loss is the text's cross-entropy: there is nothing to choose")
    if request.objective.states and request.training.compile:
        raise CompressError("intermediate states are read by hooks, which compiled models leave out: drop one of both")
    if request.offline is not None and request.objective.top_k is None:
        raise CompressError("an offline teacher keeps its most likely tokens: say how many by top_k, 128 for one")


def _notes(student: Student, halves: Halves, teacher: Teacher | None, zeros: Zeros) -> list[str]:
    notes = []
    if student.graph_alone:
        notes.append(
            f"no config says what the student is ({student.graph_alone}): its captured graph is trained, in eval mode"
        )
    of_teacher = teacher.halves.whole if isinstance(teacher, Online) else ""
    for which, whole in (("student", halves.whole), ("teacher", of_teacher)):
        if whole:
            notes.append(f"{whole}: logits of all positions of the {which} are made at once, mind the memory")
    undeclared = sorted(set(zeros.kept) - set(student.sparse))
    if undeclared:
        notes.append(
            f"{len(undeclared)} matrices have zeros of no declared pattern, which are held: {undeclared[0]}"
            f"{' among them' if len(undeclared) > 1 else ''}"
        )
    return notes


def _checkpoint_gradients(module: nn.Module) -> None:
    if not isinstance(module, PreTrainedModel) or not module.supports_gradient_checkpointing:
        raise CompressError(f"{type(module).__name__} has no gradient checkpointing: leave it out")
    compat.checkpoint_activations(module)
