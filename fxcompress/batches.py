"""Calibration data as batches: whatever the caller has them in, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxcompress.bounded import quoted
from fxcompress.errors import CompressError

Batch: TypeAlias = "Mapping[str, Tensor]"
_BATCH = 4  # sequences, where the caller gives them one by one


def batches_of(calibration: Any, batch_size: int = _BATCH) -> list[Batch]:
    """Calibration data as batches.

    calibration: an iterable of dicts of tensors or of token ids (batch, length); one tensor of ids (samples, length);
    or rows of ``input_ids``, one sequence each, as a tokenized dataset of Hugging Face has them, which are padded
    together. Raises CompressError for anything else.
    """
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2:
            raise CompressError(f"calibration ids have shape {tuple(calibration.shape)}, not (samples, length)")
        return [{"input_ids": ids} for ids in calibration.split(batch_size)]
    if isinstance(calibration, str | Mapping) or not isinstance(calibration, Iterable):
        raise CompressError(f"calibration is a list of batches, not {quoted(calibration)}")
    entries = list(calibration)
    if entries and all(map(_is_row, entries)):
        return [_padded(entries[i : i + batch_size]) for i in range(0, len(entries), batch_size)]
    batches = [_batch(entry) for entry in entries]
    if not batches:
        raise CompressError("the calibration data has no batch")
    return batches


def _is_row(entry: Any) -> bool:
    """Is it one sequence of a dataset?"""
    ids = entry.get("input_ids") if isinstance(entry, Mapping) else None
    if isinstance(ids, Tensor):
        return ids.dim() == 1
    return isinstance(ids, Sequence) and all(isinstance(i, int) for i in ids)


def _padded(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Sequences side by side, ids and a mask (batch, longest)."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    masks = [torch.as_tensor(row.get("attention_mask", torch.ones_like(i))) for row, i in zip(rows, ids, strict=True)]
    if not all(map(len, ids)):
        raise CompressError("a row of the calibration data has no token")
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad(masks, batch_first=True)
    whole = {"input_ids": pad(ids, batch_first=True), "attention_mask": mask}
    return whole if not mask.all() else {"input_ids": whole["input_ids"]}


def _batch(entry: Any) -> Batch:
    batch = {"input_ids": entry} if isinstance(entry, Tensor) else entry
    if isinstance(batch, Mapping) and isinstance(batch.get("text"), str):
        raise CompressError("the calibration data is text: tokenize it first, or name the file, --calibration FILE")
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor | None) for value in batch.values()):
        raise CompressError(f"a batch is token ids (batch, length), or a dict of tensors, not {quoted(entry)}")
    ids = batch.get("input_ids")
    if ids is not None and (ids.is_floating_point() or ids.dim() != 2):
        raise CompressError(f"token ids are {ids.dtype} {tuple(ids.shape)}, not whole numbers (batch, length)")
    if ids is not None and not ids.numel():
        raise CompressError(f"a batch of the calibration data has no token, its ids are {tuple(ids.shape)}")
    return {name: value for name, value in batch.items() if value is not None}


def require_fitting(batches: Iterable[Batch], config: Any) -> None:
    """Raise CompressError for ids that the model has no embedding of, and for sequences longer than it allows."""
    config = config.get_text_config()
    vocabulary, longest = config.vocab_size, getattr(config, "max_position_embeddings", None)
    for batch in batches:
        ids = batch.get("input_ids")
        if ids is None:
            continue
        wrong = next((int(end) for end in ids.aminmax() if not 0 <= int(end) < vocabulary), None)
        if wrong is not None:
            raise CompressError(
                f"the calibration has the token id {wrong}, the model has {vocabulary:,} ids: tokenizer and model do"
                " not belong together"
            )
        if longest is not None and ids.shape[1] > longest:
            raise CompressError(
                f"the calibration has sequences of {ids.shape[1]:,} tokens, the model allows {longest:,}: shorten them"
            )
