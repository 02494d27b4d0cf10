"""A checkpoint as a Program without loading it: captured on ``meta``, its values read from the files when needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from fxcompress.capture import capture
from fxcompress.checkpoint import Checkpoint
from fxcompress.errors import CompressError
from fxcompress.ondemand import buffers, on_demand
from fxcompress.program import Program
from fxcompress.stored import Stored


def open_program(
    checkpoint: Checkpoint, example_inputs: Any = None, captured: Program | None = None
) -> tuple[Program, Any]:
    """The program and the model itself, in float32 at the least; both read the weights where they use them.

    captured: the checkpoint's model on ``meta``, where it has been traced already. Raises CompressError for files that
    do not hold all that the model needs.
    """
    stored = checkpoint.stored()
    program = capture(stored.model, example_inputs) if captured is None else captured.clone()
    program.readers = _readers(program, stored, buffers(checkpoint.on_meta()))
    if program.is_meta:
        lost = next(name for name, t in program.state.items() if t.is_meta and name not in program.readers)
        raise CompressError(f"{checkpoint.folder}: {lost} is made by the model's code and has no value in the files")
    tied = {alias: aliases[0] for aliases in program.names.values() for alias in aliases}
    model = on_demand(checkpoint.on_meta_in_float32(), lambda name: program.read_wide(tied.get(name, name)))
    return program, model


def _readers(program: Program, stored: Stored, made: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    for name in program.state:
        aliases = program.names.get(name, (name,))
        held = next((alias for alias in aliases if alias in stored), None)
        if held is not None:
            found[name] = partial(stored.read, held)
        elif aliases[0] in made:
            found[name] = partial(made.__getitem__, aliases[0])
    return found
