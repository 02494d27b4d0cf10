"""Output directories: written beside and renamed into place, so that a final name never holds half a result."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fxcompress.errors import CompressError
from fxcompress.journal import forget_finished


def prepare_output(path: str | Path, need_bytes: int = 0, original: Path | None = None) -> Path:
    """Raise CompressError, before any work, where the output could not be written: taken, not writable, no space.

    ``original``: a directory that is left as it is, so that no output may be in it.
    """
    target = Path(path).absolute()
    if target.is_symlink():
        raise CompressError(f"{target} is a link; choose another output, or the place that it leads to")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        forget_finished(target)
        raise CompressError(f"{target} exists and is not an empty directory; choose another output")
    if original is not None and target.resolve().is_relative_to(original.resolve()):
        raise CompressError(f"{target} lies in the directory of the model, which is left alone; choose another output")
    parent = next(p for p in target.parents if p.exists())
    _try(parent, target.name)
    free = shutil.disk_usage(parent).free
    if need_bytes > free:
        raise CompressError(f"{target} needs {need_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
    return target


def _try(parent: Path, name: str) -> None:
    """Do with a small file what will be done with large ones: write beside, rename, remove."""
    if not parent.is_dir():
        raise CompressError(f"{parent} is not a directory")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".fxcompress", dir=parent) as beside:
            file = Path(beside) / "try"
            with file.open("wb") as stream:
                stream.write(bytes(4096))
                stream.flush()
                os.fsync(stream.fileno())
            file.rename(Path(beside) / "tried")
    except OSError as error:
        raise CompressError(f"{parent} cannot be written to: {error.strerror or error}") from error


@contextlib.contextmanager
def output_directory(path: str | Path, need_bytes: int = 0) -> Iterator[Path]:
    """A temporary sibling that becomes ``path`` when the block ends well, and vanishes when it does not."""
    target = prepare_output(path, need_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp makes it private
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
