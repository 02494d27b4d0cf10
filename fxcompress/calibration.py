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
    if not ids.numel():
        raise CompressError(f"the calibration text {calibration.file} is empty: the tokenizer makes no token of it")
    pieces = ids.numel() // calibration.length
    if pieces < calibration.samples:
        raise CompressError(
            f"{calibration.file} has {ids.numel():,} tokens, enough for {pieces} samples of {calibration.length};"
            f" {calibration.samples} are asked for"
        )
    chosen = torch.arange(calibration.samples) * pieces // calibration.samples
    samples = ids[: pieces * calibration.length].view(pieces, calibration.length)[chosen]
    return list(samples.split(calibration.batch_size))


def _ids(file: Path, folder: Path) -> Tensor:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no text, or no name of a file
        raise CompressError(
            f"the calibration text {file} cannot be read: {error}; name another by --calibration FILE"
        ) from error
    return torch.tensor(read_tokenizer(folder)(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
