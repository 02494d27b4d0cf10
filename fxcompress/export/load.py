"""Load a saved result: build the base on ``meta``, capture it, replay the sizes; the weights stay in their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from fxcompress.capture import capture
from fxcompress.checkpoint import read_checkpoint
from fxcompress.errors import CompressError
from fxcompress.export.names import renumbered, renumbering
from fxcompress.manifest import read_manifest, result_files
from fxcompress.opened import open_program
from fxcompress.plan import Step, read_steps
from fxcompress.program import Program
from fxcompress.report import Report
from fxcompress.rewrite import rewrite
from fxcompress.stored import Files


def load(
    path: str | Path, model: nn.Module | None = None, example_inputs: Any = None
) -> tuple[Program, list[Step], Report]:
    """The program that was saved in a directory, the plan it still has to be told with, and its report.

    Its values stay in the files until they are used: ``Program.loaded`` brings them all into memory. ``model``,
    ``example_inputs``: for results of plain modules, the module as it was before compression (its weights are not
    read) and the inputs it was captured with. Raises CompressError for files that are missing or changed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    stored = result_files(folder, manifest)
    for name, file in stored.items():
        if sha256(file) != manifest["sha256"][name]:
            raise CompressError(f"{file} is not the file that was saved: its hash differs")
    steps = read_steps(manifest["steps"])
    report = Report.from_json(manifest["report"])
    if manifest["loads_with"] == "transformers":  # the smaller config says it all: nothing is left to replay
        return open_program(read_checkpoint(folder))[0], [], report
    files = Files(stored.values())
    base = _base_on_meta(manifest["base"], files, steps) if model is None else model
    program = _replay(capture(base, example_inputs), steps)
    program.readers = _readers(program, steps, files, folder)
    return program, steps, report


def replay_on_meta(folder: Path) -> tuple[Program, list[Step], Report]:
    """The same for a result that only its plan describes, without values."""
    manifest = read_manifest(folder)
    steps = read_steps(manifest["steps"])
    base = _base_on_meta(manifest["base"], Files(result_files(folder, manifest).values()), steps)
    return _replay(capture(base), steps), steps, Report.from_json(manifest["report"])


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _base_on_meta(base: dict[str, Any], files: Files, steps: list[Step]) -> nn.Module:
    """The original class, by its name in transformers alone: no other code is ever imported.

    Every tensor has the dtype that was stored: which casts a captured graph has depends on it.
    """
    kind: Any = getattr(transformers, str(base["class"]), None)
    if base["config"] is None or not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise CompressError(f"{base['class']} is not a class of transformers: pass model= and example_inputs=")
    config_class: Any = kind.config_class
    try:
        with torch.device("meta"):
            model = kind(config_class.from_dict(base["config"])).eval()
    except Exception as error:  # what a class says to a config that does not fit may be any exception
        raise CompressError(f"no {base['class']} can be built from the config that was saved: {error}") from error
    removed = [path for step in steps for path in step.remove]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        stored = renumbered(name, removed)
        if stored in files:
            tensor.data = tensor.data.to(files.on_meta(stored).dtype)
    return model


def _replay(program: Program, steps: list[Step]) -> Program:
    program = program.clone()
    for step in steps:
        rewrite(program, step)
    return program


def _readers(program: Program, steps: list[Step], files: Files, folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """How each tensor of the replayed program is read. Raises CompressError where one is not there as the plan says."""
    names = renumbering(program, steps)
    missing = sorted(names[name] for name in program.state if names[name] not in files)
    if missing:
        raise CompressError(f"{folder}: {len(missing)} tensors are missing, {missing[0]} among them")
    for name, tensor in program.state.items():
        found = tuple(files.on_meta(names[name]).shape)
        if found != tuple(tensor.shape):
            raise CompressError(f"{names[name]} has shape {found} in the file, {tuple(tensor.shape)} by the plan")
    return {name: partial(files.read, names[name]) for name in program.state}
