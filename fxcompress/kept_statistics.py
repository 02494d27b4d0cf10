"""Statistics in a file, for later runs: one safetensors file that knows of which model and which data it is.

A file of another model or of other data is refused: its numbers would choose what to remove all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.axes import AxisMap
from fxcompress.axis import size
from fxcompress.batches import Batch
from fxcompress.bounded import parse_json
from fxcompress.errors import CompressError
from fxcompress.files import read_header
from fxcompress.program import Program
from fxcompress.schema import check
from fxcompress.statistics import Statistics, Watch
from fxcompress.sums import KINDS

_NOTE = "fxcompress"
_VECTORS = frozenset(KINDS) - {"cosine"} | {"taylor"}


class _Watched(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["tokens", "mean", "l2", "variance", "routed", "cosine", "taylor", "skip"]
    nodes: list[Annotated[str, Field(max_length=1000)]]
    dim: Annotated[int, Field(ge=-8, le=8)]
    block: Annotated[int, Field(ge=1, le=1 << 32)]
    size: Annotated[int, Field(ge=0, le=1 << 32)]
    sums: list[Literal["count", "sum", "squares", "loss", "kl", "hidden"]]


class _Note(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    model: str
    data: str
    watched: list[_Watched]


@dataclass(frozen=True)
class KeptStatistics:
    """A file of statistics of one model over one set of batches; ``data`` is None where the batches are not at hand."""

    file: Path
    model: str
    data: str | None

    @classmethod
    def of(cls, file: str | Path, program: Program, batches: Iterable[Batch] | None) -> KeptStatistics:
        return cls(Path(file), fingerprint(program), None if batches is None else digest(batches))

    def read(self, program: Program) -> Statistics:
        """What the file holds, nothing where it is not there. Raises CompressError for a file of something else."""
        if not self.file.exists():
            return Statistics()
        note, tensors = _read(self.file)
        check(_Note, note, str(self.file))
        for what, ours in (("model", self.model), ("data", self.data)):
            if ours is not None and note[what] != ours:
                raise CompressError(
                    f"{self.file} has statistics of {'another model' if what == 'model' else 'other calibration data'}:"
                    " remove it, or name another file"
                )
        found = {}
        for i, entry in enumerate(note["watched"]):
            watch = Watch(entry["kind"], tuple(entry["nodes"]), entry["dim"], entry["block"], entry["size"])
            found[watch] = {name: self._tensor(tensors, f"{i}.{name}") for name in entry["sums"]}
            self._require_fitting(program, watch, found[watch])
        return Statistics(found)

    def write(self, statistics: Statistics) -> None:
        """Beside the file and renamed into place."""
        tensors: dict[str, Tensor] = {}
        watched: list[dict[str, Any]] = []
        for i, (watch, sums) in enumerate(sorted(statistics.items(), key=lambda item: item[0])):
            fields = {name: getattr(watch, name) for name in ("kind", "dim", "block", "size")}
            watched.append({**fields, "nodes": list(watch.nodes), "sums": list(sums)})
            tensors |= {f"{i}.{name}": value.contiguous().clone() for name, value in sums.items()}
        note = {"format": 1, "model": self.model, "data": self.data or "", "watched": watched}
        beside = self.file.with_name(f".{self.file.name}.part")
        try:
            save_file(tensors, beside, metadata={_NOTE: json.dumps(note)})
            os.replace(beside, self.file)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise CompressError(f"the statistics {self.file} cannot be written: {error}") from error

    def _tensor(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        value = tensors.get(name)
        if value is None or value.dtype != torch.float64 or not value.isfinite().all():
            raise CompressError(f"{self.file} is damaged: it has no finite sums called {name}")
        return value

    def _require_fitting(self, program: Program, watch: Watch, sums: Mapping[str, Tensor]) -> None:
        nodes = {node.name: node for node in program.graph.nodes}
        if watch.kind in _VECTORS and all(name in nodes for name in watch.nodes):
            axes = program.get(AxisMap)
            wanted = watch.size or size(watch.kept(axes, nodes[watch.nodes[-1]]))
            if all(value.dim() == 0 or tuple(value.shape) == (wanted,) for value in sums.values()):
                return
        elif watch.kind not in _VECTORS and all(value.dim() == 0 for value in sums.values()):
            return
        raise CompressError(f"{self.file} is damaged: its sums of {', '.join(watch.nodes)} do not fit the model")


def require_usable(file: Path) -> None:
    """Raise CompressError, before any work, for a file that is no safetensors file or could not be written."""
    if file.exists():
        read_header(file)
    elif not file.parent.is_dir():
        raise CompressError(f"the statistics {file} cannot be written: it has no directory {file.parent}")


def _read(file: Path) -> tuple[Any, dict[str, Tensor]]:
    read_header(file)
    try:
        with safe_open(file, "pt") as stream:
            note = (stream.metadata() or {}).get(_NOTE)
            if note is None:
                raise CompressError(f"{file} has no statistics: it is another safetensors file")
            return parse_json(note), {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CompressError(f"{file} cannot be read: {error}") from error


def fingerprint(program: Program) -> str:
    """The hash of a program's graph and weights; reads every weight once."""
    digest = hashlib.sha256()
    for node in program.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    for name in sorted(program.state):
        _update(digest, name, program.read(name))
    return digest.hexdigest()


def digest(batches: Iterable[Batch]) -> str:
    """The hash of calibration batches."""
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            _update(found, name, batch[name])
    return found.hexdigest()


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    flat = tensor.detach().cpu().contiguous().flatten()
    for piece in flat.split(_PIECE):
        digest.update(piece.view(torch.uint8).numpy())


_PIECE = 1 << 24  # elements that are hashed at a time
