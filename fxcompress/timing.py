"""Seconds that pieces of work take, by turns: whatever else the machine does slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeAlias

import torch

RUNS = 5
Work: TypeAlias = "Callable[[], Any]"


def compare(candidate: Work, original: Work, device: torch.device, runs: int = RUNS) -> tuple[float, float]:
    """Median seconds of both, run by turns; a first run of each warms up and does not count."""
    ours, theirs = by_turns((candidate, original), device, runs)
    return ours, theirs


@torch.no_grad()
def by_turns(works: Sequence[Work], device: torch.device, runs: int = RUNS) -> list[float]:
    """The same for any number of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for run in range(runs + 1):
        for work, taken in zip(works, seconds, strict=True):
            started = _now(device)
            work()
            if run:
                taken.append(_now(device) - started)
    return [median(taken) for taken in seconds]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
