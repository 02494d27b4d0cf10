"""How long something takes and how much memory more than before (Linux). Standard library alone: peers use it too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def measured(call: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result, with seconds, and with the bytes that the process's resident memory rose by at its highest."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, started = _kilobytes("VmRSS"), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return result, {"seconds": seconds, "bytes": 1024 * (_kilobytes("VmHWM") - before)}


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"this system does not tell {field}")
    return int(found[1])
