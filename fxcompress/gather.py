"""All that passes asked for, from calibration batches: forward sweeps, gradients, runs without some modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from fxcompress.batches import require_fitting
from fxcompress.bounded import one_line
from fxcompress.errors import CompressError
from fxcompress.gradients import Gradients
from fxcompress.observe import Observer
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.progress import Progress, silent
from fxcompress.shifts import Shifts
from fxcompress.statistics import Statistics, Watch
from fxcompress.sums import KINDS


def gather(
    program: Program, watches: Iterable[Watch], batches: Sequence[Mapping[str, Tensor]], progress: Progress = silent
) -> Statistics:
    """Statistics of a program over batches. Raises CompressError for batches that do not fit the model."""
    if program.origin.config is not None:
        require_fitting(batches, program.origin.config)
    on = program.device
    batches = [{name: value.to(on) for name, value in batch.items()} for batch in batches]
    found = Statistics()
    try:
        for kinds, sweep in _SWEEPS.items():
            asked = [watch for watch in watches if watch.kind in kinds]
            found = found | sweep(program, asked, batches, progress) if asked else found
        return found
    except IndexError as error:
        raise CompressError("the calibration has token ids without an embedding") from error
    except TypeError as error:  # inputs of other names
        raise CompressError(f"the calibration does not fit the model: {one_line(error)}") from error


def _forward(program: Program, watches: list[Watch], batches: Sequence, progress: Progress) -> Statistics:
    observer = Observer(program, watches)
    with progress("calibration", len(batches) * len(observer.parts)) as advance:
        return observer.sweep(batches, advance)


def _backward(program: Program, watches: list[Watch], batches: Sequence, progress: Progress) -> Statistics:
    with progress("calibration, gradients", len(batches)) as advance:
        return Gradients(program, watches).sweep(batches, advance)


def _skipping(program: Program, watches: list[Watch], batches: Sequence, progress: Progress) -> Statistics:
    steps = [Step("left out", remove=watch.nodes) for watch in watches]
    with progress("calibration, without layers", len(batches) * len(watches)) as advance:
        found = Shifts(program, steps).sweep(batches, advance)
    return Statistics(dict(zip(watches, found, strict=True)))


_SWEEPS = {frozenset(KINDS): _forward, frozenset({"taylor"}): _backward, frozenset({"skip"}): _skipping}
