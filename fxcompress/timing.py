"""Seconds that two pieces of work take, by turns: whatever else the machine does slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeAlias

import torch

RUNS = 5
Work: TypeAlias = "Callable[[], Any]"


@torch.no_grad()
def compare(candidate: Work, original: Work, device: torch.device, runs: int = RUNS) -> tuple[float, float]:
    """Median seconds of both, run by turns; a first run of each warms up and does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for each, taken in zip((candidate, original), seconds, strict=True):
            started = _now(device)
            each()
            if run:
                taken.append(_now(device) - started)
    return median(seconds[0]), median(seconds[1])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
