"""What long work says while it runs: ``with progress("calibration", 16) as advance: ... advance()``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Shows a step of the work, of so many parts if that is known; yields what is called after each part."""

    def __call__(self, what: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]: ...


def silent(what: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]:
    """No progress display."""
    return contextlib.nullcontext(lambda: None)
