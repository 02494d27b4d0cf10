"""Load a saved result: build the base on ``meta``, capture it, replay the sizes; the weights stay in their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from torch import nn

from fxcompress.capture import capture
from fxcompress.checkpoint import read_checkpoint
from fxcompress.errors import CompressError
from fxcompress.export.names import checkpoint_names, names_in_place, renumbered, renumbering
from fxcompress.files import sha256
from fxcompress.manifest import read_manifest, result_files
from fxcompress.ondemand import buffers
from fxcompress.opened import open_program
from fxcompress.packed import PackedFiles
from fxcompress.plan import Step, read_steps
from fxcompress.program import Program
from fxcompress.report import Report
from fxcompress.rewrite import rewrite
from fxcompress.stored import Files, Stored

Weights: TypeAlias = "PackedFiles | Stored"


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
        program = open_program(read_checkpoint(folder))[0]
        program.sparse = dict(manifest.get("sparse", {}))
        return program, [], report
    own = read_checkpoint(folder).stored() if manifest["loads_with"] == "fxcompress" else None
    weights: Weights = PackedFiles(Files(stored.values())) if own is None else own
    if model is not None:
        program = _replay(capture(model, example_inputs), steps)
    else:
        program = _replay(_base_on_meta(manifest["base"], weights, steps), steps)
    program.readers |= _readers(program, steps, weights, folder)
    names = renumbering(program, steps)
    program.sparse = {name: text for name in program.state if (text := manifest.get("sparse", {}).get(names.get(name)))}
    return program, steps, report


def replay_on_meta(folder: Path) -> tuple[Program, list[Step], Report]:
    """The same for a result that its plan describes, without values."""
    program, steps, report = load(folder)
    program.readers.clear()
    return program, steps, report


def _base_on_meta(base: dict[str, Any], weights: Weights, steps: list[Step]) -> Program:
    """The original, by the name of its class in transformers alone: no other code is ever imported.

    Every tensor has the dtype that was stored: which casts a captured graph has depends on it. Buffers that the class
    computes have values, so that the plan cuts them.
    """
    kind: Any = getattr(transformers, str(base["class"]), None)
    if base["config"] is None or not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise CompressError(f"{base['class']} is not a class of transformers: pass model= and example_inputs=")
    config_class: Any = kind.config_class
    try:
        with torch.device("meta"):
            model, other = (kind(config_class.from_dict(base["config"])).eval() for _ in range(2))
    except Exception as error:  # what a class says to a config that does not fit may be any exception
        raise CompressError(f"no {base['class']} can be built from the config that was saved: {error}") from error
    made = buffers(other)
    removed = [path for step in steps for path in step.remove]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        stored = next((n for n in (renumbered(name, removed), name) if n in weights), None)
        if stored is not None:
            tensor.data = tensor.data.to(weights.on_meta(stored).dtype)
        elif name in made:
            tensor.data = tensor.data.to(made[name].dtype)
    program = capture(model)
    program.readers = {name: partial(made.__getitem__, name) for name in program.state if name in made}
    return program


def _replay(program: Program, steps: list[Step]) -> Program:
    program = program.clone()
    for step in steps:
        rewrite(program, step)
    return program


def _readers(
    program: Program, steps: list[Step], weights: Weights, folder: Path
) -> dict[str, Callable[[], torch.Tensor]]:
    """How each tensor of the replayed program is read. Raises CompressError where one is not there as the plan says."""
    found: dict[str, str] = {}
    for names in (checkpoint_names(program, steps), names_in_place(program, steps)):
        found = {old: new for new, old in reversed(names.items()) if new in weights}
        missing = sorted(old for old in program.state if old not in found and old not in program.readers)
        if not missing:
            break
    else:
        raise CompressError(f"{folder}: {len(missing)} tensors are missing, {missing[0]} among them")
    for name, tensor in program.state.items():
        if name in found and (shape := tuple(weights.on_meta(found[name]).shape)) != tuple(tensor.shape):
            raise CompressError(f"{found[name]} has shape {shape} in the file, {tuple(tensor.shape)} by the plan")
    return {name: partial(weights.read, found[name]) for name in program.state if name in found}
