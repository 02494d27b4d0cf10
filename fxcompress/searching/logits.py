"""What a model says of a batch of token ids, for those that judge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxcompress.batches import Batch
from fxcompress.bounded import one_line
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.variant import Variant


def logits_of(program: Program | Variant, batch: Batch) -> Tensor:
    """Logits (batch, length, vocabulary). Raises CompressError for batches that do not fit, and for none."""
    if batch.get("input_ids") is None:
        raise CompressError("the calibration has no input_ids: candidates are ranked by how they predict tokens")
    try:
        out: Any = program(**_on(program, batch))
    except IndexError as error:
        raise CompressError("the calibration has token ids without an embedding") from error
    except TypeError as error:  # inputs of other names
        raise CompressError(f"the calibration does not fit the model: {one_line(error)}") from error
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise CompressError(f"{program.origin.model_class.__name__} gives no logits (batch, length, vocabulary)")
    return logits


def follows(batch: Batch) -> Tensor:
    """Which tokens from the second on are real and follow a real one, (batch, length - 1)."""
    mask = batch.get("attention_mask")
    real = batch["input_ids"].new_ones(batch["input_ids"].shape).bool() if mask is None else mask.bool()
    return real[:, 1:] & real[:, :-1]


def _on(program: Program | Variant, batch: Batch) -> Mapping[str, Tensor]:
    return {name: value.to(program.device) for name, value in batch.items()}
