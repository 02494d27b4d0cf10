"""Where the model of a search is: its directory, and the device that holds its values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fxcompress.bounded import one_line, quoted
from fxcompress.errors import CompressError
from fxcompress.source import Opened


def directory_of(model: Any) -> Path | None:
    """The directory that a model is named by; None for others."""
    return Path(model) if isinstance(model, str | Path) and Path(model).is_dir() else None


def moved(opened: Opened, device: str | None) -> Opened:
    """With all values in the memory of a device, where one is named."""
    if device is None:
        return opened
    return replace(opened, program=opened.program.loaded().on_device(named_device(device)), model=None)


def named_device(name: str) -> torch.device:
    """Raises CompressError for a device that is not there."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # what torch says to a device that is not there
        raise CompressError(f"device={quoted(name)} is not there: {one_line(error)}") from error
