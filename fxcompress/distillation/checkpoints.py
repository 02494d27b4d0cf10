"""What a run has reached, in a folder of its own: written beside and renamed, so that the last one is always whole.

    .OUT.fxcompress/training/checkpoint-100/     the student, loadable; state of optimiser, schedule and randomness

The journal beside it has the hash of every file: nothing is read that this run has not written. The folder vanishes
when the result has its final name, and with it the optimiser's state, which torch stores as a pickle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fxcompress.files import sha256
from fxcompress.journal import Journal

_STAGE = "training to step "


class Damaged(Exception):
    """A checkpoint is not what this run has written."""


@dataclass(frozen=True)
class Checkpoints:
    """Of one run; one is kept, the last."""

    folder: Path
    journal: Journal

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder in which ``checkpoint-STEP`` is made; it becomes the last one if the block ends well."""
        beside = self.folder / "part"
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
        beside.mkdir(parents=True)
        try:
            yield beside
            made = beside / f"checkpoint-{step}"
            hashes = {file.name: _on_disk(file) for file in sorted(made.iterdir())}
            place = self.folder / made.name
            shutil.rmtree(place, ignore_errors=True)  # it was renamed, and the journal not written
            made.rename(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._note(step, hashes)

    def last(self) -> Path | None:
        """The last checkpoint, None before the first. Raises Damaged where its files are not as they were written."""
        found = {int(what.removeprefix(_STAGE)): files for what, files in self._stages().items()}
        if not found:
            return None
        step = max(found)
        place = self.folder / f"checkpoint-{step}"
        for name, digest in found[step].items():
            if not (place / name).is_file() or sha256(place / name) != digest:
                raise Damaged(f"{place / name} is missing or not as it was written: remove {self.folder.parent}")
        return place

    def _note(self, step: int, hashes: dict[str, str]) -> None:
        for what in self._stages():
            del self.journal.stages[what]
        self.journal.stage(f"{_STAGE}{step}", lambda: hashes)
        for old in self.folder.glob("checkpoint-*"):
            if old.name != f"checkpoint-{step}":
                shutil.rmtree(old, ignore_errors=True)

    def _stages(self) -> dict[str, dict[str, str]]:
        return {what: files for what, files in self.journal.stages.items() if what.startswith(_STAGE)}


def _on_disk(file: Path) -> str:
    """The hash of a file whose bytes have reached the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256(file)
