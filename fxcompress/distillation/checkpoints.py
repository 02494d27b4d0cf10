"""What a run has reached, in a folder of its own: written beside and renamed, so that the last one is always whole.

    .OUT.fxcompress/training/checkpoint-100/     the student, loadable; state of optimiser, schedule and randomness
                                                 of several processes: the pieces of each, by torch

The journal beside it has the hash of every file: nothing is read that this run has not written. The folder vanishes
when the result has its final name, and with it the optimiser's state, which torch stores as a pickle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxcompress.distillation.ranks import Ranks
from fxcompress.files import sha256
from fxcompress.journal import Journal, folder_of, journaled

_STAGE = "training to step "


class Damaged(Exception):
    """A checkpoint is not what this run has written."""


@dataclass(frozen=True)
class Checkpoints:
    """Of one run; one is kept, the last. All processes of a run call the same methods, and the first one writes."""

    folder: Path
    journal: Journal
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder in which ``checkpoint-STEP`` is made; it becomes the last one if the block ends well."""
        beside = self.folder / "part"
        made = beside / f"checkpoint-{step}"
        if self.ranks.first:
            shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
            beside.mkdir(parents=True)
        self.ranks.gathered("it is there")
        try:
            yield beside
            self.ranks.gathered("all have written")
            hashes = self._hashes(sorted(made.iterdir()))
            if self.ranks.first:
                shutil.rmtree(
                    self.folder / made.name, ignore_errors=True
                )  # it was renamed, and the journal not written
                made.rename(self.folder / made.name)
            self.ranks.gathered("it has its name")
        finally:
            if self.ranks.first:
                shutil.rmtree(beside, ignore_errors=True)
        self._note(step, hashes)

    def last(self) -> Path | None:
        """The last checkpoint, None before the first. Raises Damaged where its files are not as they were written."""
        found = {int(what.removeprefix(_STAGE)): files for what, files in self._stages().items()}
        if not found:
            return None
        step = max(found)
        place = self.folder / f"checkpoint-{step}"
        there = self._hashes([place / name for name in found[step]])
        for name, digest in found[step].items():
            if there[name] != digest:
                raise Damaged(f"{place / name} is missing or not as it was written: remove {self.folder.parent}")
        return place

    def _hashes(self, files: Sequence[Path]) -> dict[str, str]:
        """By name, empty for what is missing; each process reads its part of the files."""
        mine = {file.name: _on_disk(file) for file in files[self.ranks.rank :: self.ranks.world]}
        return {name: digest for part in self.ranks.gathered(mine) for name, digest in part.items()}

    def _note(self, step: int, hashes: dict[str, str]) -> None:
        for what in self._stages():
            del self.journal.stages[what]
        self.journal.stage(f"{_STAGE}{step}", lambda: hashes)
        for old in self.folder.glob("checkpoint-*"):
            if self.ranks.first and old.name != f"checkpoint-{step}":
                shutil.rmtree(old, ignore_errors=True)

    def _stages(self) -> dict[str, dict[str, str]]:
        return {what: files for what, files in self.journal.stages.items() if what.startswith(_STAGE)}


def _on_disk(file: Path) -> str:
    """The hash of a file whose bytes have reached the disk."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256(file)


@contextlib.contextmanager
def journaled_together(target: Path, key: str, ranks: Ranks) -> Iterator[tuple[Path, Journal]]:
    """``journaled`` by the first process; the others know what it knows, and write nothing."""
    with contextlib.ExitStack() as stack:
        with ranks.agreeing():
            found = stack.enter_context(journaled(target, key)) if ranks.first else None
        stages = ranks.gathered(found and found[1].stages)[0]
        if found is None:
            found = folder_of(target) / "result", _Followed(folder_of(target) / "journal.json", key)
            found[1].stages = stages
        yield found


class _Followed(Journal):
    """The journal of another process."""

    def _write(self) -> None:
        pass
