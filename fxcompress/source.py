"""The models that work begins with: a checkpoint of transformers, a config alone, or a result; by path or by hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fxcompress.capture import capture
from fxcompress.checkpoint import Checkpoint, read_checkpoint
from fxcompress.errors import CompressError
from fxcompress.export.load import load, replay_on_meta
from fxcompress.hub import resolve
from fxcompress.manifest import MANIFEST, read_manifest, result_files
from fxcompress.opened import open_program
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.report import Report


@dataclass(frozen=True)
class Opened:
    """A program with the steps it still has behind it, its report, and the model that it was captured from."""

    program: Program
    steps: list[Step] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    model: Any = None  # None where nothing is to be compared: a result was compared when it was made


@dataclass(frozen=True)
class Source:
    """A model that is checked but not read. Results that stock transformers does not load have no ``checkpoint``."""

    path: Path
    checkpoint: Checkpoint | None
    is_result: bool
    example: Mapping[str, Tensor] | None = None
    progress: Progress = silent

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def directory(self) -> Path | None:
        """What is the model's alone; a config file may lie anywhere."""
        return self.path if self.path.is_dir() else None

    @property
    def files(self) -> list[Path]:
        """Its weights."""
        if self.checkpoint is not None:
            return list(self.checkpoint.files)
        return list(result_files(self.folder, read_manifest(self.folder)).values())

    def check_weights(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.check_weights()

    def left_out(self) -> str:
        """What of the files no result of it will hold, empty if nothing."""
        return "" if self.checkpoint is None else self.checkpoint.left_out()

    def on_meta(self) -> Opened:
        """Graph and sizes, without values."""
        with self.progress(f"capture of {self.path.name}"):
            if self.checkpoint is None:
                return Opened(*replay_on_meta(self.folder))
            program = capture(self.checkpoint.on_meta(), self.example)
            if self.is_result:  # its config says sizes, and no patterns of zeros
                program.sparse = dict(read_manifest(self.folder).get("sparse", {}))
            return Opened(program)

    def opened(self, random: bool = False, captured: Program | None = None) -> Opened:
        """The model with its values, which stay in the files until they are used; or with random ones in memory.

        captured: what ``on_meta`` gave, so that it is not traced again.
        """
        if random:
            return self._made_up()
        with self.progress(f"opening {self.path.name}"):
            if self.is_result:
                return Opened(*load(self.folder))
            assert self.checkpoint is not None
            program, model = open_program(self.checkpoint, self.example, captured)
            return Opened(program, model=model)

    def _made_up(self) -> Opened:
        if self.checkpoint is None:
            raise CompressError(f"{self.path} has no config that random weights could be made for")
        with self.progress(f"random weights for {self.path.name}"):
            model = self.checkpoint.with_random_weights()
            return Opened(capture(model, self.example), model=model)


def open_source(
    model: str | Path,
    revision: str | None = None,
    example: Mapping[str, Tensor] | None = None,
    progress: Progress = silent,
) -> Source:
    """Check a model's directory or config file, or bring it from the hub.

    Raises CompressError, before weights are read, for what cannot work.
    """
    path = resolve(model, revision)
    if not (path / MANIFEST).is_file():
        return Source(path, read_checkpoint(path), False, example, progress)
    ordinary = read_manifest(path)["loads_with"] == "transformers"
    return Source(path, read_checkpoint(path) if ordinary else None, True, example, progress)
