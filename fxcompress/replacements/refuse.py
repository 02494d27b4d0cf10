"""What a replaced function is asked for and our op cannot express is refused, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxcompress.errors import CaptureError

_ZERO_STATE = "every sequence begins with a state of zero"
_ONE_SEQUENCE = "a row of the batch is one sequence"

REASONS = {
    "initial_state": _ZERO_STATE,
    "initial_states": _ZERO_STATE,
    "seq_idx": _ONE_SEQUENCE,
    "cu_seqlens": _ONE_SEQUENCE,
}


def refuse(others: Mapping[str, Any], *names: str) -> None:
    """Raise CaptureError where one of these arguments is given."""
    for name in names:
        value = others.get(name)
        if isinstance(value, Tensor) or value:
            why = f": {REASONS[name]}" if name in REASONS else ""
            raise CaptureError(f"the model passes {name!r}, which the captured op cannot express{why}")
