"""The models that commands are given: a checkpoint of transformers, a config alone, or a result of fxcompress."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fxcompress.capture import capture
from fxcompress.checkpoint import Checkpoint, read_checkpoint
from fxcompress.cli.progress import Steps
from fxcompress.compressed import CompressedModel, load
from fxcompress.errors import CompressError
from fxcompress.export.load import MANIFEST, read_manifest
from fxcompress.report import Report


@dataclass(frozen=True)
class Source:
    """A model that is checked but not loaded. Results that only fxcompress loads have no ``checkpoint``."""

    path: Path
    checkpoint: Checkpoint | None
    is_result: bool
    example: Mapping[str, torch.Tensor] | None
    steps: Steps

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> list[Path]:
        return list(self.checkpoint.files if self.checkpoint else sorted(self.folder.glob("*.safetensors")))

    def require_weights(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.require_weights()

    def on_meta(self) -> CompressedModel:
        """Graph and sizes, without values."""
        if self.checkpoint is not None:
            with self.steps(f"capture of {self.path.name}"):
                return CompressedModel(capture(self.checkpoint.on_meta(), self.example), [], Report())
        loaded = self.loaded()
        return CompressedModel(loaded.program.on_device(torch.device("meta")), loaded.steps, loaded.report)

    def loaded(self, random: bool = False) -> CompressedModel:
        """The model with its values, or with random ones."""
        if self.is_result and not random:
            with self.steps(f"loading {self.path.name}"):
                return load(self.path)
        if self.checkpoint is None:
            raise CompressError(f"{self.path} has no config that random weights could be made for")
        with self.steps(f"loading {self.path.name}"):
            model = self.checkpoint.with_random_weights() if random else self.checkpoint.with_weights()
        with self.steps(f"capture of {self.path.name}"):
            return CompressedModel(capture(model, self.example), [], Report())


def open_source(path: Path, steps: Steps, example: Sequence[str] = ()) -> Source:
    """Check a model's directory or config file. Raises CompressError, before weights are read, for what cannot work."""
    inputs = dict(map(_read_example, example)) or None
    if not (path / MANIFEST).is_file():
        return Source(path, read_checkpoint(path), False, inputs, steps)
    ordinary = read_manifest(path)["loads_with"] == "transformers"
    return Source(path, read_checkpoint(path) if ordinary else None, True, inputs, steps)


def _read_example(text: str) -> tuple[str, torch.Tensor]:
    """``input_ids=2x64`` is a tensor of ones of that shape; only the shape matters to capture."""
    match = re.fullmatch(r"(\w+)=(\d+(?:x\d+)*)", text)
    if match is None:
        raise CompressError(f"--example {text!r} is not of the form input_ids=2x64")
    return match[1], torch.ones([int(n) for n in match[2].split("x")], dtype=torch.long)
