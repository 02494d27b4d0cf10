"""Where weights lie that a pass has computed: in memory, or in files for a model whose weights are in files.

With a journal the files outlive the run, so that the next one finds them; else they go with the last who reads them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.files import sha256
from fxcompress.journal import Journal
from fxcompress.program import Program
from fxcompress.stored import Files


@dataclass
class Shelf:
    """The new weights of one pass, part by part. ``what``: the pass, by its name in the journal."""

    what: str
    journal: Journal | None = None

    def holds(self, part: int) -> bool:
        """Has an earlier run finished this part?"""
        return self.journal is not None and self._stage(part) in self.journal and self._is_there(part)

    @property
    def is_whole(self) -> bool:
        """Are the files of all finished parts there?"""
        return all(map(self._is_there, self._finished()))

    def take_all(self, program: Program) -> None:
        """Give the program the weights of all finished parts."""
        for part in self._finished():
            self.take(part, program)

    def _finished(self) -> list[int]:
        begin = self._stage(0).removesuffix("0")
        stages = [] if self.journal is None else self.journal.stages
        return [int(stage.removeprefix(begin)) for stage in stages if stage.startswith(begin)]

    def _is_there(self, part: int) -> bool:
        assert self.journal is not None
        file = self._file(part)
        return file.is_file() and sha256(file) == self.journal.stages[self._stage(part)]["sha256"]

    def put(self, part: int, program: Program, values: Mapping[str, Tensor], told: Any = None) -> None:
        """Give the program these weights; ``told``: what to remember with them, as JSON."""
        if self.journal is not None:
            self.journal.stages.pop(self._stage(part), None)  # its file is gone, or another
            self.journal.stage(self._stage(part), partial(self._write, part, values, told))
            self.take(part, program)
        elif program.readers:
            _give(program, _nameless(values))
        else:
            _set(program, values)

    def take(self, part: int, program: Program) -> Any:
        """Give the program the weights of a part that is finished; returns what was told with them."""
        assert self.journal is not None
        _give(program, Files([self._file(part)]))
        return self.journal.stages[self._stage(part)]["told"]

    def _stage(self, part: int) -> str:
        return f"{self.what}, block {part}"

    def _file(self, part: int) -> Path:
        assert self.journal is not None
        return self.journal.file.parent / f"{self.what}, block {part}.safetensors"

    def _write(self, part: int, values: Mapping[str, Tensor], told: Any) -> dict[str, Any]:
        beside = self._file(part).with_suffix(".part")
        save_file({name: value.contiguous() for name, value in values.items()}, beside)
        os.replace(beside, self._file(part))
        return {"sha256": sha256(self._file(part)), "told": told}


def _nameless(values: Mapping[str, Tensor]) -> Files:
    """Tensors in a file that is removed once it is open: it is gone when nobody reads it any more."""
    with tempfile.TemporaryDirectory(prefix="fxcompress-") as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in values.items()}, file)
        return Files([file])


def _give(program: Program, files: Files) -> None:
    if program.readers:
        program.readers |= {name: partial(files.read, name) for name in files.names()}
    else:
        _set(program, {name: files.read(name) for name in files.names()})


def _set(program: Program, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        program.set_state(name, torch.nn.Parameter(value, requires_grad=program.state[name].requires_grad))
