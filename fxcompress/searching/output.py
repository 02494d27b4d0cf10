"""A search with an output: its stages in a journal beside it, its files under their final name at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fxcompress.errors import CompressError
from fxcompress.export.files import prepare_output
from fxcompress.journal import journaled
from fxcompress.read_score import criterion
from fxcompress.score import Own, Score
from fxcompress.searching.found import Found
from fxcompress.searching.stages import Stage

NEEDED_BYTES = 1 << 22  # recipes, a table and a picture


def output(out: str | Path | None, original: Path | None, score: Score) -> Path | None:
    """Where to write, None for nowhere. Raises CompressError where that is taken, or lies in the original's folder."""
    if out is None:
        return None
    if isinstance(criterion(score), Own):
        raise CompressError("a score of your own does not fit into a recipe: give its name, or leave out= away")
    return prepare_output(out, NEEDED_BYTES, original)


def written(folder: Path | None, key: Callable[[], str], search: Callable[[Stage], Found]) -> Found:
    """What a search finds, and its files; stages that a journal of the same ``key`` has are not run again."""
    if folder is None:
        return search(lambda _, make: make())
    with journaled(folder, key()) as (beside, journal):
        found = search(journal.stage)
        found.write(beside, folder)
    return found
