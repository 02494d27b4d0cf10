"""What each of many steps costs alone: the scores of layers and of the choices for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fxcompress.batches import Batch
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress
from fxcompress.searching.stages import Stage
from fxcompress.shifts import Shifts


def losses_alone(
    program: Program, steps: Sequence[Step], batches: Sequence[Batch], stage: Stage, progress: Progress
) -> list[dict[str, float]]:
    """Of each step "loss", "kl" and "hidden" of ``fxcompress.shifts``, as means over tokens; each batch is a stage."""
    shifts, found = Shifts(program, steps), []
    for i, batch in enumerate(batches):
        with progress(f"each choice alone, batch {i + 1} of {len(batches)}", len(steps)) as advance:
            found.append(stage(f"alone {i}", partial(_sums, shifts, batch, advance)))
    return [_means([of_batch[j] for of_batch in found]) for j in range(len(steps))]


def _sums(shifts: Shifts, batch: Batch, advance: Callable[[], None]) -> list[dict[str, float]]:
    """Of one batch, as JSON, which keeps every digit."""
    return [{name: float(value) for name, value in one.items()} for one in shifts.sweep([batch], advance)]


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    count = sum(part["count"] for part in parts)
    return {name: math.fsum(part[name] for part in parts) / count for name in ("loss", "kl", "hidden")}
