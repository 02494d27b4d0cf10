"""What a run has finished, in a folder beside its output: a run that was stopped goes on from there.

    .OUT.fxcompress/journal.json    the request's hash, and what each finished stage gave
    .OUT.fxcompress/result/         the output as far as it is written; renamed to OUT at the end
    .OUT.fxcompress/lock            held by the run that is writing

Stages count only for the same request: the same files, recipe, options and versions, by their hashes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fxcompress.bounded import read_json
from fxcompress.errors import CompressError, ProofError

FORMAT = 1
MOST_BYTES = 1 << 30  # of a vocabulary and experts in every layer, chosen one by one, there are some 100 MB


class Journal:
    """Results of finished stages by the stage's name; each is on the disk before the next begins."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key
        self.stages: dict[str, Any] = {}

    def __contains__(self, what: str) -> bool:
        return what in self.stages

    def stage(self, what: str, make: Callable[[], Any], holds: Callable[[Any], bool] = lambda _: True) -> Any:
        """What a stage gave in an earlier run, if that still holds, else what it gives now. Results are JSON."""
        if what not in self.stages or not holds(self.stages[what]):
            self.stages[what] = make()
            self._write()
        return self.stages[what]

    def read(self) -> None:
        """Take over what an earlier run has finished. Raises CompressError where that was another request."""
        content = _intact(self.file)
        if content is None:
            return  # the run begins anew
        if content["key"] != self.key:
            raise CompressError(
                f"{self.file.parent} has an unfinished run of another request (other files, recipe, options or"
                " versions): remove it to begin anew, or choose another output"
            )
        self.stages = content["stages"]

    def _write(self) -> None:
        beside = self.file.with_suffix(".part")
        with beside.open("w") as stream:
            content = {"format": FORMAT, "key": self.key, "stages": self.stages}
            json.dump(content | {"sha256": key_of(content)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(self.file)


def key_of(request: Any) -> str:
    """The hash of a request, or of anything else that is JSON."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _intact(file: Path) -> dict[str, Any] | None:
    """What is in a journal; None where there is none, or where it is not as it was written: cut short, or changed."""
    try:
        content = read_json(file, MOST_BYTES)
    except CompressError:
        return None
    digest = content.pop("sha256", None) if isinstance(content, dict) else None
    return content if digest == key_of(content) else None


def folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.fxcompress")


def forget_finished(target: Path) -> None:
    """Remove what a run has left that was stopped right after its output got its final name."""
    beside = folder_of(target)
    if beside.is_dir() and not (beside / "result").exists():
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def journaled(target: Path, key: str) -> Iterator[tuple[Path, Journal]]:
    """A folder that becomes ``target`` when the block ends well, and the journal of the run that fills it.

    When the block is stopped, or the machine fails it, both stay for the next run, unless no stage was finished. Raises
    CompressError where another run is writing the same output.
    """
    beside = folder_of(target)
    try:
        (beside / "result").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CompressError(f"{beside} is where the journal goes, and is no directory: remove it") from error
    with _locked(beside / "lock", target):
        journal = Journal(beside / "journal.json", key)
        journal.read()
        try:
            yield beside / "result", journal
            os.replace(beside / "result", target)
        except (CompressError, ProofError):  # would come again
            shutil.rmtree(beside, ignore_errors=True)
            raise
        except BaseException as error:
            _keep(beside, journal, error)
            raise
        shutil.rmtree(beside, ignore_errors=True)


def _keep(beside: Path, journal: Journal, error: BaseException) -> None:
    """What is finished stays for the next run, and the user is told so."""
    if journal.stages and (beside / "result").exists():
        done = ", ".join(journal.stages)
        error.add_note(f"finished and kept in {beside}: {done}; the same command goes on from there")
    else:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path, target: Path) -> Iterator[None]:
    """Held while the process lives, however it ends."""
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CompressError(f"another run is writing {target}") from error
        yield
