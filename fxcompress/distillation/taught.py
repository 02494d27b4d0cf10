"""A teacher from what is given: opened and lent for the time of a run, or what was kept of it, or none.

One that the caller holds is back where it was, in its own mode, when the run ends. An offline one is opened only to
write what is kept, if that is not there yet: its memory is free for the student.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fxcompress.batches import require_fitting
from fxcompress.compressed import CompressedModel
from fxcompress.distillation.offline import MANIFEST, Asked, Offline, digest_of, write
from fxcompress.distillation.ranks import Ranks
from fxcompress.distillation.rows import Rows
from fxcompress.distillation.student import compressed_of
from fxcompress.distillation.teacher import Online, Teacher
from fxcompress.errors import CompressError
from fxcompress.export.choose import choose
from fxcompress.source import open_source

if TYPE_CHECKING:
    from fxcompress.distillation.prepared import Request

ALONE = Ranks()
_PROBE = 16  # tokens on which halves are compared with their model


@contextlib.contextmanager
def taught(request: Request, given: Any, rows: Rows, ranks: Ranks = ALONE) -> Iterator[tuple[Teacher | None, str]]:
    """The teacher and its hash, empty where nothing is kept that would need it."""
    if given is None:
        yield None, ""
        return
    keeps = request.to_be_saved or request.offline is not None
    if request.offline is None:
        with (_copied if ranks.several else _online)(request, given, rows) as teacher:
            yield teacher, identity(given) if keeps else ""
        return
    objective = request.objective
    assert objective.top_k is not None
    asked = Asked(request.offline, identity(given), rows, objective.temperature, objective.top_k)
    if not (request.offline / MANIFEST).is_file():
        if ranks.several:
            raise CompressError(
                f"{request.offline} is not there yet, and one process writes it: run the command without torchrun,"
                " with --dry-run"
            )
        with _online(request, given, rows) as teacher:
            write(asked, teacher, request.training.batch_size, request.training.where(), request.progress)
    yield Offline(asked), asked.teacher


def open_teacher(given: Any) -> nn.Module:
    """A teacher as a module with its values in memory, in the dtype that it is stored in."""
    if isinstance(given, PreTrainedModel):
        return given
    if isinstance(given, Path):
        source = open_source(given)
        if not source.is_result:
            source.check_weights()
            return AutoModelForCausalLM.from_pretrained(source.folder, dtype="auto", local_files_only=True).eval()
    compressed = compressed_of(given, "the teacher")
    form = choose(compressed.program, compressed.steps).form
    if form is not None:
        return form.loaded()
    return CompressedModel(compressed.program.loaded(), compressed.steps, compressed.report)


def identity(given: Any) -> str:
    """The hash of a teacher."""
    if isinstance(given, Path):
        return digest_of({}, open_source(given).files)
    return digest_of(given.program.state if isinstance(given, CompressedModel) else given.state_dict(), [])


def probe(rows: Rows) -> Tensor:
    """The beginning of the first two rows, (rows, tokens)."""
    some = [rows[i]["input_ids"] for i in range(min(2, len(rows)))]
    length = min(_PROBE, *map(len, some)) if len(some) > 1 else min(_PROBE, len(some[0]))
    return torch.stack([ids[:length] for ids in some])


@contextlib.contextmanager
def _online(request: Request, given: Any, rows: Rows) -> Iterator[Online]:
    model, device = _opened(request, given, rows), request.training.where()
    with _lent(model, device):
        yield Online(model, probe(rows).to(device))


@contextlib.contextmanager
def _copied(request: Request, given: Any, rows: Rows) -> Iterator[Online]:
    """On the CPU, and to be spread over processes: not the caller's own."""
    model = _opened(request, given, rows)
    if any(p.is_meta for p in model.parameters()):
        raise CompressError("the teacher is on meta and has no values to teach with")
    yield Online(copy.deepcopy(model).cpu() if model is given else model, probe(rows))


def _opened(request: Request, given: Any, rows: Rows) -> nn.Module:
    with request.progress("opening the teacher"):
        model = open_teacher(given)
    config = model.program.origin.config if isinstance(model, CompressedModel) else model.config
    if config is not None:
        require_fitting(({"input_ids": row["input_ids"][None]} for row in rows.rows), config)
    return model


@contextlib.contextmanager
def _lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    place, training = next(model.parameters()).device, model.training
    if place.type == "meta":
        raise CompressError("the teacher is on meta and has no values to teach with")
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(place).train(training)
