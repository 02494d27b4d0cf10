"""What is trained on, row by row: token ids of text, and which of them are predicted.

Text is cut into windows of one length; rows of the caller's own may have any length, padding, and labels that leave
out a part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from fxcompress.batches import Batch, batches_of
from fxcompress.checkpoint import read_tokenizer
from fxcompress.errors import CompressError

IGNORED = -100  # a label that is not predicted, by the convention of PyTorch
_FIELDS = ("input_ids", "attention_mask", "labels")
_PIECE = 1 << 20  # characters that the tokenizer is given at a time


class Rows(Dataset):
    """Each row a dict of ids (length,), labels with ``IGNORED`` where nothing is predicted, and its place in the data.

    A token is predicted if it is real and follows a real one, so the first of a row never is.
    """

    def __init__(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        row = self.rows[place]
        ids = row["input_ids"].long()
        mask = row.get("attention_mask", torch.ones_like(ids)).bool()
        labels = row.get("labels", ids).long().clone()
        labels[~mask] = IGNORED
        labels[1:][~mask[:-1]] = IGNORED
        labels[0] = IGNORED
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels, "row": torch.tensor(place)}

    @property
    def longest(self) -> int:
        return max(len(row["input_ids"]) for row in self.rows)

    def predicted(self) -> int:
        """How many tokens are."""
        return sum(int((row["labels"] != IGNORED).sum()) for row in (self[i] for i in range(len(self))))

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in order."""
        for start in range(0, len(self), size):
            yield collate([self[i] for i in range(start, min(start + size, len(self)))])


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows side by side (batch, longest); a mask only where there is padding."""
    ids, mask = (
        pad_sequence([row[name] for row in rows], batch_first=True) for name in ("input_ids", "attention_mask")
    )
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED)
    batch = {"input_ids": ids, "labels": labels, "row": torch.stack([row["row"] for row in rows])}
    return batch if mask.all() else batch | {"attention_mask": mask}


def rows_of(data: Any, tokenizer: Path | None, length: int) -> Rows:
    """Data as rows: files of text, or what ``batches_of`` takes, with ``labels`` of the caller's own if there are.

    tokenizer: where it lies; length: tokens of a window of text. Raises CompressError for anything else.
    """
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and data and all(isinstance(file, str | Path) for file in data):
        return Rows(_windows([Path(file) for file in data], tokenizer, length))
    entries = data if isinstance(data, Tensor | str) or not isinstance(data, Iterable) else list(data)
    if isinstance(entries, list) and entries and all(isinstance(e, Mapping) and "labels" in e for e in entries):
        entries = [_batch(entry) for entry in entries]
    return Rows([row for batch in batches_of(entries) for row in _split(batch)])


def _batch(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """A row of a dataset, or a batch of the caller's own, with its labels."""
    found = {name: torch.as_tensor(value) for name, value in entry.items() if name in _FIELDS and value is not None}
    return {name: value[None] if value.dim() == 1 else value for name, value in found.items()}


def _split(batch: Batch) -> Iterator[dict[str, Tensor]]:
    if "input_ids" not in batch:
        raise CompressError(f"a batch of the data has {', '.join(batch) or 'nothing'}, and no input_ids")
    names = [name for name in _FIELDS if name in batch]
    shapes = {tuple(batch[name].shape) for name in names}
    if len(shapes) > 1:
        raise CompressError(f"{', '.join(names)} of a batch of the data have other shapes: {sorted(shapes)}")
    for i in range(len(batch["input_ids"])):
        yield {name: batch[name][i] for name in names}


def _windows(files: Sequence[Path], tokenizer: Path | None, length: int) -> list[dict[str, Tensor]]:
    if tokenizer is None:
        raise CompressError("the data is text, and no tokenizer lies beside the student or the teacher: give token ids")
    if length < 2:
        raise CompressError(f"length={length}: a window has two tokens at the least, one to predict the other")
    encode = read_tokenizer(tokenizer)
    ids = torch.cat([_ids(encode, piece) for file in files for piece in _pieces(file)] or [torch.tensor([])])
    count = len(ids) // length
    if not count:
        raise CompressError(f"the text has {len(ids):,} tokens, less than one window of {length:,}")
    return [{"input_ids": window} for window in ids[: count * length].view(count, length)]


def _ids(tokenizer: Any, text: str) -> Tensor:
    """In int32: a corpus may have billions."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int32)


def _pieces(file: Path) -> Iterator[str]:
    """Whole lines, about a million characters at a time."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            while lines := stream.readlines(_PIECE):
                yield "".join(lines)
    except (OSError, ValueError) as error:  # no text, or no name of a file
        raise CompressError(f"the text {file} cannot be read: {error}") from error
