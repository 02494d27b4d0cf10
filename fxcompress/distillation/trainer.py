"""transformers' ``Trainer`` on a student with its loss: schedule, accumulation, mixed precision and resume are its own.

Added are zeros that are held, a stop at a loss that is no number before it reaches the weights, checkpoints that are
whole or not there, and a line of progress, whose mean a run that goes on takes over the steps before it too.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from fxcompress.distillation.checkpoints import Checkpoints
from fxcompress.distillation.distiller import Distiller
from fxcompress.distillation.rows import Rows, collate
from fxcompress.distillation.zeros import Zeros

LOSSES = "losses.json"  # of every step so far
_STATES = "states.safetensors"
_GRAPH = "graph.safetensors"  # weights of a student that is no model of transformers


class Diverged(Exception):
    """The loss, or a weight, is no number any more."""


@dataclass(frozen=True)
class Line:
    """Where training is. ``loss``: the mean since the last line; the rest is of this call, not of the run before it."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float


Log = Callable[[Line], None]


class DistillationTrainer(Trainer):
    """``checkpoints``: None keeps none. ``losses``: of every step so far."""

    def __init__(
        self, distiller: Distiller, rows: Rows, arguments: Any, zeros: Zeros, checkpoints: Checkpoints | None, log: Log
    ) -> None:
        super().__init__(model=distiller, args=arguments, train_dataset=rows, data_collator=collate)
        self.student, self.states = distiller.student, distiller.states
        self.checkpoints = checkpoints
        self.losses: list[float] = []
        self._beside: Path | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Holding(zeros))
        self.add_callback(_Telling(distiller, log))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Raises Diverged before the optimiser has seen a gradient that is no number."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not loss.isfinite():
            raise Diverged(f"the loss is {float(loss)} at step {self.state.global_step + 1}")
        if len(self.losses) == self.state.global_step:
            self.losses.append(0.0)
        self.losses[-1] += float(loss)  # its part, where a step has several batches
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["loss"] = mean_loss(self.losses, self.state.global_step, round(self.args.logging_steps))
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.checkpoints is not None
        self._require_numbers()
        with self.checkpoints.writing(self.state.global_step) as beside, self._saving_into(beside):
            super()._save_checkpoint(model, trial)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._beside or self.args.output_dir)

    @contextlib.contextmanager
    def _saving_into(self, folder: Path) -> Any:
        self._beside = folder
        try:
            yield
        finally:
            self._beside = None

    def _require_numbers(self) -> None:
        """A gradient that overflowed leaves weights that the next loss would show."""
        for name, parameter in self.student.named_parameters():
            if not parameter.isfinite().all():
                raise Diverged(f"{name} holds values that are NaN or Inf after step {self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The student as a model's directory; no pickle of the arguments."""
        assert output_dir is not None
        folder, student = Path(output_dir), self.student
        folder.mkdir(exist_ok=True)
        if isinstance(student, PreTrainedModel):
            student.save_pretrained(folder)
        else:
            save_file({name: value.contiguous() for name, value in student.state_dict().items()}, folder / _GRAPH)
        (folder / LOSSES).write_text(json.dumps(self.losses))
        if self.states is not None:
            save_file(self.states.state_dict(), folder / _STATES)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, student = Path(resume_from_checkpoint), self.student
        if isinstance(student, PreTrainedModel):
            stored = type(student).from_pretrained(folder, local_files_only=True, dtype=student.dtype).state_dict()
        else:
            stored = load_file(folder / _GRAPH)
        student.load_state_dict(stored)
        self.losses = json.loads((folder / LOSSES).read_text())
        if self.states is not None:
            self.states.load_state_dict(load_file(folder / _STATES))


class _Holding(TrainerCallback):
    """Zeros stay zero."""

    def __init__(self, zeros: Zeros) -> None:
        self.zeros = zeros

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.zeros.restore()


class _Telling(TrainerCallback):
    """A line of progress where ``Trainer`` logs."""

    def __init__(self, distiller: Distiller, log: Log) -> None:
        self.distiller, self.log = distiller, log

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return  # the summary at the end
        took, done = time.monotonic() - self.began, state.global_step - self.first
        self.log(
            Line(
                step=state.global_step,
                steps=state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens_per_second=self.distiller.positions / max(took, 1e-9),
                seconds_left=took / max(done, 1) * (state.max_steps - state.global_step),
            )
        )


def train(trainer: DistillationTrainer, checkpoint: Path | None) -> list[tuple[int, float]]:
    """Train, from a checkpoint of this run on if there is one; return the losses of all of its lines, by step."""
    if checkpoint is not None and checkpoint.name == f"checkpoint-{trainer.args.max_steps}":
        trainer._load_from_checkpoint(str(checkpoint))  # it was stopped after the last step
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return of_lines(trainer.losses, round(trainer.args.logging_steps))


def of_lines(losses: Sequence[float], every: int) -> list[tuple[int, float]]:
    """The loss of every line by its step, from the losses of all steps."""
    return [(step, mean_loss(losses, step, every)) for step in range(every, len(losses) + 1, every)]


def mean_loss(losses: Sequence[float], step: int, every: int) -> float:
    """The mean since the line before, whichever run wrote that."""
    return statistics.fmean(losses[step - every : step])


__all__ = ["LOSSES", "DistillationTrainer", "Diverged", "Line", "Log", "mean_loss", "of_lines", "train"]
