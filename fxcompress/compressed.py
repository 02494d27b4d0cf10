"""What a user holds after compression: called as the model was, with a report, and ways out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcompress.capture import capture
from fxcompress.errors import CaptureError
from fxcompress.export.choose import choose
from fxcompress.export.config import NotExpressible
from fxcompress.export.form import to_transformers
from fxcompress.export.load import load as read
from fxcompress.export.save import MAX_SHARD_SIZE, save
from fxcompress.journal import Journal
from fxcompress.lowered import restored
from fxcompress.pipeline import Pass, Pipeline, check_values, listed
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.report import Report
from fxcompress.source import Opened, open_source
from fxcompress.sparse_modules import put_sparse
from fxcompress.verify import captured_equals_model

KERNELS = (
    "sparse kernels were chosen for the machine and the process that the model runs in. Files hold the weights"
    " themselves: apply UseSparseKernels again after loading"
)


class CompressedModel(nn.Module):
    """A compressed model: ``model(input_ids=ids)`` returns the original class of outputs.

    ``report`` says what changed and what proves it; ``steps`` is the plan, as data.
    """

    def __init__(self, program: Program, steps: Sequence[Step], report: Report) -> None:
        super().__init__()
        self.graph_module = program.module
        self.program, self.steps, self.report = program, list(steps), report
        self._ordinary: Any = None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs for whole sequences, without a cache."""
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> CompressedModel:
        """Dropout and the like are captured as they run in eval mode; only the flag changes."""
        self.training = mode
        return self

    def to_transformers(self) -> Any:
        """An ordinary model of the original class with a smaller config, checked to give the same logits.

        Raises ``fxcompress.NotExpressible`` when no config of the class has these shapes.
        """
        return to_transformers(restored(self.program), self.steps)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with transformers, cache included; takes what ``generate`` of the original class takes."""
        if self._ordinary is None:
            choice = choose(restored(self.program), self.steps)
            if choice.form is None:
                raise NotExpressible(choice.why)
            ordinary = choice.form.loaded()
            put_sparse(ordinary, self.program, choice.form.names)
            self.__dict__["_ordinary"] = ordinary  # not a submodule: its weights are these weights
        return self._ordinary.generate(*args, **kwargs)

    def save_pretrained(
        self,
        path: str | Path,
        source: str | Path | None = None,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        packed: bool = False,
    ) -> Path:
        """Save to a new directory: see ``fxcompress.export.save.save``. Files hold weights, no choice of kernels."""
        return save(restored(self.program), self.steps, self.report, path, source, max_shard_size, packed)


def apply(
    model: nn.Module | Program | CompressedModel | str | Path,
    passes: Sequence[Pass],
    calibration: Any = None,
    *,
    example_inputs: Any = None,
    statistics: str | Path | None = None,
    verify: bool = True,
    progress: Progress = silent,
) -> CompressedModel:
    """Compress a model with passes, in order, each verified before the next. The user's model is left alone.

    model: a module, a result, or the directory or hub id of one: then weights stay in their files until they are used,
    and the model may be larger than memory.
    calibration: batches for passes that score by activations: an iterable of dicts of tensors or of token ids
    (batch, length), one tensor of ids (samples, length), or the rows of a tokenized dataset.
    statistics: a safetensors file in which what calibration finds is kept, and from which it is taken when it is there;
    one of another model or of other data is refused.
    example_inputs: for modules that are not models of transformers, see ``fxcompress.capture``.
    verify: check the laws after every pass and raise ProofError when one does not hold.
    progress: see ``fxcompress.progress``.

    Raises CompressError for requests that cannot be carried out, before anything is changed. On ``meta`` weights this
    is a dry run: shapes, counts and config of the result, with the first indices kept.
    """
    with progress("capture"):
        opened = open_model(model, example_inputs)
    return compress_opened(opened, passes, calibration, verify, progress, statistics=statistics)


def compress_opened(
    opened: Opened,
    passes: Sequence[Pass],
    calibration: Any = None,
    verify: bool = True,
    progress: Progress = silent,
    journal: Journal | None = None,
    statistics: str | Path | None = None,
) -> CompressedModel:
    """``apply`` to a program that is there; passes that the journal has are replayed."""
    program, before = opened.program, opened.report
    with progress("checks of the original"):
        check = partial(checks, opened, verify)
        checked = journal.stage("checks", check) if journal is not None else check()
    pipeline = Pipeline(listed(passes), verify, progress, journal, statistics)
    result = _own(pipeline.run(program, calibration), program)
    report = Report.of(pipeline.records)
    report.passes[:0] = before.passes
    report.notes = {"model": program.origin.model_class.__name__} | before.notes
    report.capture_error = before.capture_error
    if checked is not None:
        report.capture_error = checked["error"]
        report.notes |= {checked["name"]: f"not checked: {checked['why']}"} if checked["why"] else {}
    if result.lowered:
        report.notes |= {"kernels": KERNELS}
    return CompressedModel(result, [*opened.steps, *(record.step for record in pipeline.records)], report)


def open_model(model: nn.Module | Program | CompressedModel | str | Path, example_inputs: Any) -> Opened:
    """What ``apply`` takes as a model, as a program."""
    if isinstance(model, str | Path):
        return open_source(model, example=example_inputs).opened()
    if isinstance(model, CompressedModel):
        return Opened(restored(model.program), list(model.steps), model.report)
    if isinstance(model, Program):
        return Opened(restored(model))
    return Opened(capture(model, example_inputs), model=model)


def checks(opened: Opened, verify: bool) -> dict[str, Any] | None:
    """How far the graph is from the model it was captured from: all other laws compare the graph with its rewrite."""
    check_values(opened.program)
    if not verify or opened.model is None:
        return None
    law = captured_equals_model(opened.model, opened.program)
    if not law.holds:
        raise CaptureError(
            f"the captured graph of {type(opened.model).__name__} computes something else than the model: {law}. The"
            " model does something that the replaced functions do not express, such as a mask of its own"
        )
    return {"name": law.name, "error": law.error, "why": law.why}


def load(path: str | Path, model: nn.Module | None = None, example_inputs: Any = None) -> CompressedModel:
    """The result that was saved in a directory: see ``fxcompress.export.load.load``."""
    program, steps, report = read(path, model, example_inputs)
    return CompressedModel(program.loaded(), steps, report)


def _own(result: Program, original: Program) -> Program:
    """The result with tensors of its own: training it must not change the user's model."""
    shared = {id(tensor) for tensor in original.state.values()}
    borrowed = {name for name, tensor in result.state.items() if id(tensor) in shared}
    return result.map_state(lambda name, t: t.clone() if name in borrowed else t)
