"""A search of a checkpoint with a text, as the command line asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fxcompress.batches import Batch, batches_of
from fxcompress.calibration import read_calibration
from fxcompress.export.files import prepare_output
from fxcompress.progress import Progress
from fxcompress.recipe import Calibration
from fxcompress.searching.found import Found
from fxcompress.searching.output import NEEDED_BYTES
from fxcompress.source import Opened, Source


class Request(Protocol):
    """What is searched for, by one of the methods."""

    @property
    def text(self) -> Calibration | None: ...

    def check(self) -> None:
        """Raise CompressError for what can be refused before anything is captured."""

    def carry_out(
        self, opened: Opened, batches: Sequence[Batch], out: str | Path, original: Path | None, progress: Progress
    ) -> Found: ...


def search_source(request: Request, source: Source, out: str | Path, random: bool, progress: Progress) -> Found:
    """Search for smaller models of a checkpoint, scored and ranked on the text that the request names."""
    assert request.text is not None, "the command line asks for it"
    prepare_output(out, NEEDED_BYTES, source.directory)
    if not random:
        source.check_weights()
    with progress("tokens of the calibration text"):
        batches = batches_of(read_calibration(request.text, source.folder))
    return request.carry_out(source.opened(random), batches, out, source.directory, progress)
