"""A teacher that ran once: what it finds likely, in files that are used over epochs and runs.

    DIR/teacher.json              of which teacher, rows and temperature; the first row of each file
    DIR/top-00001.safetensors     ids (positions, k) and log_probs (positions, k + 1), row after row

The last column is the log of what all other tokens have together (``losses.Top``). A token takes 8 k + 4 bytes: 100
million tokens and k = 128 take 103 GB. Only the positions whose next token is predicted are there. Minitron (arXiv
2407.14679) loses by k of 100 and less, and finds no gain in more.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.bounded import read_json
from fxcompress.distillation.losses import Top, top_of
from fxcompress.distillation.rows import IGNORED, Rows, collate
from fxcompress.distillation.teacher import Online
from fxcompress.errors import CompressError
from fxcompress.export.files import prepare_output
from fxcompress.files import inside, read_header, sha256
from fxcompress.journal import journaled, key_of
from fxcompress.kept_statistics import digest
from fxcompress.progress import Progress
from fxcompress.schema import check

MANIFEST = "teacher.json"
_SHARD = 1 << 30  # bytes of a file
_MOST = 1 << 26  # bytes of the manifest
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    teacher: _Digest
    rows: _Digest
    temperature: float
    k: Annotated[int, Field(ge=1)]
    vocabulary: Annotated[int, Field(ge=1)]
    first_rows: dict[str, Annotated[int, Field(ge=0)]]  # of each file


@dataclass(frozen=True)
class Asked:
    """What the files have to be of. teacher: its hash."""

    folder: Path
    teacher: str
    rows: Rows
    temperature: float
    k: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "rows": digest(self.rows.rows), "temperature": float(self.temperature)}


class Offline:
    """What was kept of a teacher, as a teacher."""

    def __init__(self, asked: Asked) -> None:
        """Raises CompressError for files of another teacher, other rows or another temperature, and damaged ones."""
        content = _read(asked.folder)
        for what, value in asked.identity.items():
            if content[what] != value:
                raise CompressError(
                    f"{asked.folder} has what a teacher says with other {_OTHER[what]}: remove it, or name another"
                    " directory"
                )
        if content["k"] < asked.k:
            raise CompressError(f"{asked.folder} has the {content['k']} most likely tokens, {asked.k} are asked for")
        self.k, self.stored, self.vocabulary = asked.k, content["k"], content["vocabulary"]
        self.starts = _starts(asked.rows)
        self.files = [inside(asked.folder, name) for name in content["first_rows"]]
        self.first_rows = list(content["first_rows"].values())
        self.streams: dict[Path, Any] = {}
        self._require_whole(asked.folder)

    def targets(self, inputs: Mapping[str, Tensor], rows: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        device, found = rows.device, [self._row(row) for row in rows.tolist()]
        ids, log_probs = (torch.cat(parts).to(device) for parts in zip(*found, strict=True))
        return ids.long(), log_probs

    def said(self, *targets: Tensor) -> Top:
        return Top(*targets) if self.k == self.stored else Top(*targets).first(self.k)

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        place = bisect.bisect_right(self.first_rows, row) - 1
        begin, end = (self.starts[r] - self.starts[self.first_rows[place]] for r in (row, row + 1))
        stream = self._opened(self.files[place])
        ids = stream.get_slice("ids")[begin:end]
        if ids.numel() and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise CompressError(f"{self.files[place]} is damaged: it names tokens that the teacher does not have")
        return ids, stream.get_slice("log_probs")[begin:end]

    def _opened(self, file: Path) -> Any:
        if file not in self.streams:
            self.streams[file] = safe_open(file, "pt")
        return self.streams[file]

    def _require_whole(self, folder: Path) -> None:
        ends = [*self.first_rows[1:], len(self.starts) - 1]
        if self.first_rows != sorted({0, *self.first_rows}) or ends[-1] <= self.first_rows[-1]:
            raise CompressError(f"{folder / MANIFEST} is damaged: its files do not follow one another")
        for file, first, end in zip(self.files, self.first_rows, ends, strict=True):
            count, header = self.starts[end] - self.starts[first], read_header(file)
            shapes = {name: (stored.dtype, stored.shape) for name, stored in header.items()}
            if shapes != {"ids": ("I32", (count, self.stored)), "log_probs": ("F32", (count, self.stored + 1))}:
                raise CompressError(f"{file} is damaged: it has not {self.stored} tokens of {count:,} positions")


_OTHER = {"teacher": "weights", "rows": "text", "temperature": "temperature"}


@torch.no_grad()
def write(asked: Asked, teacher: Online, batch_size: int, device: torch.device, progress: Progress) -> None:
    """Run a teacher over all rows and keep its k most likely tokens; a run that was stopped goes on file by file."""
    if asked.k > teacher.vocabulary:
        raise CompressError(f"top_k={asked.k} is more than the {teacher.vocabulary:,} tokens of the teacher")
    starts, identity = _starts(asked.rows), asked.identity
    firsts = _first_rows(starts, asked.k)
    target = prepare_output(asked.folder, starts[-1] * (8 * asked.k + 4))
    names = {f"top-{i:05d}.safetensors": first for i, first in enumerate(firsts, 1)}
    content = identity | {"format": 1, "k": asked.k, "vocabulary": teacher.vocabulary, "first_rows": names}
    with journaled(target, key_of(content)) as (folder, journal), progress("the teacher's logits", len(firsts)) as step:
        for name, (first, end) in zip(names, itertools.pairwise([*firsts, len(asked.rows)]), strict=True):
            some = range(first, end)
            make = partial(_written, folder / name, asked, teacher, some, batch_size, device)
            journal.stage(name, make, partial(_is_there, folder / name))
            step()
        (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def _written(
    file: Path, asked: Asked, teacher: Online, some: Sequence[int], batch_size: int, device: torch.device
) -> str:
    tops = [top for start in some[::batch_size] for top in _tops(asked, teacher, start, some, batch_size, device)]
    save_file(
        {
            "ids": torch.cat([top.ids.int().cpu() for top in tops]),
            "log_probs": torch.cat([top.log_probs.float().cpu() for top in tops]),
        },
        file,
    )
    return sha256(file)


def _is_there(file: Path, hashed: str) -> bool:
    return file.is_file() and sha256(file) == hashed


def _tops(
    asked: Asked, teacher: Online, start: int, some: Sequence[int], batch_size: int, device: torch.device
) -> Iterator[Top]:
    """Of one batch, a chunk of positions at a time."""
    rows = [asked.rows[i] for i in range(start, min(start + batch_size, some[-1] + 1))]
    batch = {name: value.to(device) for name, value in collate(rows).items()}
    counts = batch.pop("labels")[:, 1:] != IGNORED
    (hidden,) = teacher.targets(batch, batch.pop("row"), counts)
    for piece in hidden.split(_CHUNK):
        yield top_of(teacher.said(piece) / asked.temperature, asked.k)


_CHUNK = 1024  # positions


def _starts(rows: Rows) -> list[int]:
    """The first position of each row, and how many there are."""
    counts = (int((rows[i]["labels"] != IGNORED).sum()) for i in range(len(rows)))
    return list(itertools.accumulate(counts, initial=0))


def _first_rows(starts: Sequence[int], k: int) -> list[int]:
    """Of the files, each as large as one may be."""
    limit, firsts = _SHARD // (8 * k + 4), [0]
    for row in range(1, len(starts) - 1):
        if starts[row + 1] - starts[firsts[-1]] > limit:
            firsts.append(row)
    return firsts


def _read(folder: Path) -> dict[str, Any]:
    content = read_json(inside(folder, MANIFEST), _MOST)
    try:
        check(_Fields, content, "teacher")
    except CompressError as error:
        raise CompressError(f"{folder / MANIFEST} cannot be read: {error}") from error
    return content


def digest_of(tensors: Mapping[str, Tensor], files: Sequence[Path]) -> str:
    """The hash of a model: of its files where it has some, else of its tensors."""
    if not files:
        return digest([tensors])
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
