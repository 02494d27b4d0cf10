"""Distillation: a smaller model is trained to say what the one that it was made from says.

    student, teacher ──▶ same vocabulary? ──▶ rows of text ──▶ halves ──▶ estimate ──▶ Trainer ──▶ student, as given

With an output the run is kept in a journal beside it, checkpoints included, and the same call goes on where an earlier
one was stopped. Minitron, arXiv 2407.14679 and 2408.11796.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from fxcompress.distillation.checkpoints import Checkpoints, Damaged, journaled_together
from fxcompress.distillation.distilled import Distilled
from fxcompress.distillation.evaluate import Scores
from fxcompress.distillation.float8 import in_float8
from fxcompress.distillation.halves import Halves
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.pair import placed, tokenizer_of
from fxcompress.distillation.prepared import Prepared, Request, prepared
from fxcompress.distillation.ranks import Refused
from fxcompress.distillation.shards import gathered, whole
from fxcompress.distillation.student import Student
from fxcompress.distillation.teacher import Online
from fxcompress.distillation.training import Training
from fxcompress.errors import CompressError
from fxcompress.export.companions import find_tokenizer
from fxcompress.export.files import prepare_output
from fxcompress.export.save import MAX_SHARD_SIZE, RESERVE, Result, versions
from fxcompress.export.shards import read_size
from fxcompress.journal import Journal, key_of
from fxcompress.kept_statistics import digest
from fxcompress.progress import Progress, silent

if TYPE_CHECKING:
    from fxcompress.distillation.trainer import Line

Log = Callable[["Line"], None]
Stage = Callable[[str, Callable[[], Any]], Any]
_STATE = 4  # a checkpoint: weights and two moments in float32, and the result


def distill(
    student: Any,
    teacher: Any,
    data: Any,
    *,
    objective: Objective = Objective(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008
    held_out: Any = None,
    length: int = 512,
    out: str | Path | None = None,
    offline: str | Path | None = None,
    progress: Progress = silent,
    log: Log = lambda line: None,
) -> Distilled:
    """Train a student against a teacher. Both are left alone: what was trained is in the result.

    student, teacher: a model of transformers, a result of fxcompress, or the directory or hub id of either; token ids
    mean the same to both. data, held_out: files of text, which are cut into windows of ``length`` tokens, or what
    ``fxcompress.apply`` takes as calibration, ``labels`` with -100 included; the held-out text is scored before and
    after. out: a directory to write, as ``save_pretrained`` writes it, with checkpoints beside it while the run lasts:
    the same call goes on from the last. offline: a directory in which the ``objective.top_k`` tokens that the teacher
    finds most likely are kept, and from which they are taken when they are there: the teacher is in memory only while
    they are written. log: called with a ``Line`` every ``training.log_every`` steps.

    Raises CompressError for what cannot be carried out, before weights are read where configs and text say it, and
    where the loss turns into no number: the last checkpoint stays.
    """
    if teacher is None:
        raise CompressError("the teacher is missing; correct_teacher trains on the text alone")
    kept = None if offline is None else Path(offline)
    saved = out is not None
    request = Request(student, teacher, data, objective, training, held_out, length, kept, saved, progress, out)
    return _carried_out(request, out, log)


CORRECTION = Training(learning_rate=2e-5, min_learning_rate=2e-6, warmup=120)


def correct_teacher(
    teacher: Any,
    data: Any,
    *,
    training: Training = CORRECTION,
    held_out: Any = None,
    length: int = 512,
    out: str | Path | None = None,
    progress: Progress = silent,
    log: Log = lambda line: None,
) -> Distilled:
    """Train a teacher a little on the text that it will teach with, by the cross-entropy of the text alone.

    What it says of text unlike its own is worth less (Minitron in practice, arXiv 2408.11796: 120 steps of
    warm-up to a fifth of the learning rate that it was made with). The student is made from the teacher as it was, and
    learns from the corrected one. Arguments, result and errors are those of ``distill``.
    """
    saved = out is not None
    request = Request(teacher, None, data, Objective(), training, held_out, length, None, saved, progress, out)
    return _carried_out(request, out, log)


def _carried_out(request: Request, out: str | Path | None, log: Log) -> Distilled:
    with prepared(request) as ready:
        return carry_out(ready, out, log)


def carry_out(ready: Prepared, out: str | Path | None, log: Log) -> Distilled:
    """Train what was prepared, and write it to ``out`` if that is given."""
    run = Run(ready, log if ready.ranks.first else lambda line: None)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return run.trained(Path(folder), None, lambda what, make: make())[0]
    weights = 4 * ready.estimate.parameters
    with ready.ranks.agreeing():
        target = prepare_output(out, _STATE * weights + RESERVE) if ready.ranks.first else Path(out).absolute()
    try:
        with journaled_together(target, _key(ready), ready.ranks) as (beside, journal):
            checkpoints = Checkpoints(beside.parent / "training", journal, ready.ranks)
            found, student = run.trained(checkpoints.folder, checkpoints, journal.stage)
            if student is not None:
                run.save(beside, found, student, journal)
            return found
    except (Damaged, Stopped) as error:
        raise Refused(str(error)) from error


class Stopped(Exception):
    """Training cannot go on; what it has reached stays, unlike after a CompressError."""


@dataclass(frozen=True)
class Run:
    """The stages of a run."""

    ready: Prepared
    log: Log

    def trained(self, folder: Path, checkpoints: Checkpoints | None, stage: Stage) -> tuple[Distilled, Student | None]:
        """Scores, training, scores; the student is in the first process. ``folder``: for what ``Trainer`` writes."""
        ready = self.ready
        of_teacher = self._scores("of the teacher", stage)
        before = self._scores("before", stage)
        losses = self._train(folder, checkpoints)
        ready.zeros.release()
        after = self._scores("after", lambda what, make: make())
        found = Distilled(None, ready.estimate, losses, before, after, of_teacher, ready.notes)
        student = self._whole()
        return (found if student is None else self._with_student(found, student)), student

    def save(self, folder: Path, found: Distilled, student: Student, journal: Journal) -> None:
        result = student.result(self._note(found))
        assert result is not None
        tokenizer = find_tokenizer(result.program, tokenizer_of(placed(self.ready.request.student)))
        with self.ready.request.progress("saving the student"):
            saving = Result(result.program, result.steps, result.report, tokenizer, read_size(MAX_SHARD_SIZE))
            saving.write(folder, journal.stage)

    def _whole(self) -> Student | None:
        request, ranks = self.ready.request, self.ready.ranks
        if not ranks.several:
            return self.ready.student
        return whole(self.ready.distiller, ranks, placed(request.student), request.to_be_saved)

    def _with_student(self, found: Distilled, student: Student) -> Distilled:
        """The student of the kind that was given."""
        if isinstance(student.given, PreTrainedModel):
            trained: nn.Module = student.model()
        else:
            result = student.result(self._note(found))
            assert result is not None
            trained = result
        return replace(found, student=trained)

    def _scores(self, what: str, stage: Stage) -> Scores | None:
        ready = self.ready
        held, teacher = ready.held, ready.teacher if isinstance(ready.teacher, Online) else None
        if held is None or (what == "of the teacher" and teacher is None):
            return None
        ready.student.module.eval()
        pair: tuple[Halves, Online | None] = (ready.distiller.halves, teacher)
        if what == "of the teacher" and teacher is not None:
            pair = (teacher.halves, None)
        with gathered(ready.distiller):
            return Scores(**stage(f"scores {what}", lambda: asdict(held.scores(*pair, f"scores {what}"))))

    def _train(self, folder: Path, checkpoints: Checkpoints | None) -> list[tuple[int, float]]:
        from fxcompress.distillation.trainer import Diverged  # Trainer is slow to import

        ready = self.ready
        try:
            with ready.request.progress("training"), self._in_float8():
                return (self._by_several if ready.ranks.several else self._by_one)(folder, checkpoints)
        except Diverged as error:
            raise (Refused if checkpoints is None else Stopped)(f"{error}: {_advice(checkpoints)}") from error

    def _by_one(self, folder: Path, checkpoints: Checkpoints | None) -> list[tuple[int, float]]:
        from fxcompress.distillation.trainer import DistillationTrainer, train

        ready = self.ready
        arguments = ready.request.training.arguments(folder, ready.steps, checkpoints is not None)
        trainer = DistillationTrainer(ready.distiller, ready.rows, arguments, ready.zeros, checkpoints, self.log)
        return train(trainer, None if checkpoints is None else checkpoints.last())

    def _by_several(self, folder: Path, checkpoints: Checkpoints | None) -> list[tuple[int, float]]:
        from fxcompress.distillation.sharded import Sharded

        return Sharded(self.ready, checkpoints, self.log).train()

    def _in_float8(self) -> contextlib.AbstractContextManager[Any]:
        ready, recipe = self.ready, self.ready.request.training.float8
        return in_float8(ready.student.module, recipe, ready.in_float8) if recipe else contextlib.nullcontext()

    def _note(self, found: Distilled) -> dict[str, Any]:
        request = self.ready.request
        note = {"objective": asdict(request.objective), "steps": self.ready.steps, "rows": len(self.ready.rows)}
        options = {name: value for name, value in asdict(request.training).items() if name not in _UNTOLD}
        return json.loads(json.dumps(note | {"training": options} | found.to_json(), default=str))


_UNTOLD = ("device", "more", "log_every", "save_every")


def _advice(checkpoints: Checkpoints | None) -> str:
    last = None if checkpoints is None else checkpoints.last()
    if last is None:
        return "no checkpoint was there yet; lower the learning rate, or lengthen the warm-up"
    if checkpoints is not None and checkpoints.ranks.several:
        return f"the last good state is in {last}, in pieces that this run alone can read"
    return f"the last good weights are in {last}; train from those with a lower learning rate"


def _key(ready: Prepared) -> str:
    """All that the result depends on."""
    request = ready.request
    asked = {name: value for name, value in asdict(request.training).items() if name not in ("log_every", "save_every")}
    return key_of(
        {
            "student": ready.made_of,
            "teacher": ready.taught_by,
            "rows": digest(ready.rows.rows),
            "held_out": None if ready.held is None else digest(ready.held.rows.rows),
            "objective": asdict(request.objective),
            "training": {name: str(value) for name, value in asked.items()},
            "processes": ready.ranks.world,
            "versions": versions(),
        }
    )
