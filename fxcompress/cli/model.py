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
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.export import load
from fxcompress.export.save import MANIFEST
from fxcompress.report import Report

Example = Mapping[str, torch.Tensor] | None


@dataclass(frozen=True)
class Source:
    """A model by its path, checked but not loaded. ``checkpoint`` is None for results that only fxcompress loads."""

    path: Path
    checkpoint: Checkpoint | None
    example: Example
    steps: Steps

    def on_meta(self) -> CompressedModel:
        """Graph and sizes, without values."""
        if self.checkpoint is None:
            loaded = self.loaded()
            with self.steps(f"sizes of {self.path.name}"):
                program = loaded.program.on_device(torch.device("meta"))
            return CompressedModel(program, loaded.steps, loaded.report)
        with self.steps(f"capture of {self.path.name}"):
            return CompressedModel(capture(self.checkpoint.on_meta(), self.example), [], Report())

    def loaded(self, random: bool = False) -> CompressedModel:
        """The model with its values, or with random ones."""
        with self.steps(f"loading {self.path.name}"):
            if self.checkpoint is None:
                return load(self.path)
            model = self.checkpoint.with_random_weights() if random else self.checkpoint.with_weights()
        with self.steps(f"capture of {self.path.name}"):
            return CompressedModel(capture(model, self.example), [], Report())
