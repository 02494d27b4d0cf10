"""Calibration text as token ids: pieces of one length, spread evenly over a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fxcompress.checkpoint import read_tokenizer
from fxcompress.errors import CompressError
from fxcompress.recipe import Calibration


def read_calibration(calibration: Calibration, folder: Path) -> list[Tensor]:
    """Batches of ids (batch_size, length) from a UTF-8 text, by the tokenizer in ``folder``.

    Raises CompressError for a file that is no text and a text that is too short.
    """
    ids = _ids(Path(calibration.file), folder)
    pieces = ids.numel() // calibration.length
    if pieces < calibration.samples:
        raise CompressError(
            f"{calibration.file} has {ids.numel():,} tokens, enough for {pieces} samples of {calibration.length};"
            f" {calibration.samples} are asked for"
        )
    chosen = torch.arange(calibration.samples) * pieces // calibration.samples
    samples = ids[: pieces * calibration.length].view(pieces, calibration.length)[chosen]
    return list(samples.split(calibration.batch_size))


def require_known(batches: list[Tensor], vocabulary: int) -> None:
    """Raise CompressError for ids that the model has no embedding of."""
    ends = [int(end) for ids in batches if ids.numel() for end in ids.aminmax()]
    wrong = next((i for i in ends if not 0 <= i < vocabulary), None)
    if wrong is not None:
        raise CompressError(
            f"the tokenizer gives the id {wrong}, the model has {vocabulary} ids: they do not belong together"
        )


def _ids(file: Path, folder: Path) -> Tensor:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no text, or no name of a file
        raise CompressError(f"the calibration text {file} cannot be read: {error}") from error
    return torch.tensor(read_tokenizer(folder)(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
