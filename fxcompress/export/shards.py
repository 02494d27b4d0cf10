"""Write safetensors files tensor by tensor: a file's header is known before any value is, so that none has to wait.

A safetensors file is eight bytes with the length of a JSON header, the header, and the values one after the other.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress.bounded import quoted
from fxcompress.errors import CompressError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    **{torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """A file to be written: its name and its tensors, on ``meta``, in the order in which their values will come."""

    file: str
    tensors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(map(size_in_bytes, self.tensors.values()))


def size_in_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def read_size(size: int | str) -> int:
    """Bytes from ``"5GB"`` or a number. Raises CompressError for what is neither."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", str(size).upper())
    count = 0.0 if match is None or isinstance(size, bool) else float(match[1]) * _UNITS[match[2] or ""]
    if not 1 <= count < math.inf:
        raise CompressError(f"max_shard_size={quoted(size)} is no size: write bytes, or '500MB', '5GB', '2GiB'")
    return int(count)


def pack(tensors: Mapping[str, Tensor], max_bytes: int) -> list[Shard]:
    """Tensors in their order into files of at most so many bytes; a larger tensor has a file to itself."""
    lists: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used and used + size_in_bytes(tensor) > max_bytes:
            lists.append({})
            used = 0
        lists[-1][name] = tensor
        used += size_in_bytes(tensor)
    if len(lists) == 1:
        return [Shard(SINGLE, lists[0])]
    return [Shard(f"model-{i:05}-of-{len(lists):05}.safetensors", part) for i, part in enumerate(lists, 1)]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Which file has which tensor; a single file needs no index."""
    if len(shards) > 1:
        where = {name: shard.file for shard in shards for name in shard.tensors}
        content = {"metadata": {"total_size": sum(shard.bytes for shard in shards)}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_shard(folder: Path, shard: Shard, values: Iterable[tuple[str, Tensor]]) -> Path:
    """Write a file from values in any order. It is there under its name only when it is whole and on the disk."""
    header, places = _layout(shard.tensors)
    beside = folder / f"{shard.file}.part"
    left = set(shard.tensors)
    with beside.open("wb") as stream:
        stream.write(header)
        for name, value in values:
            _check(name, value, shard.tensors)
            stream.seek(len(header) + places[name])
            stream.write(_bytes(value))
            left.remove(name)
        if left:
            raise CompressError(f"{shard.file}: no value was given for {min(left)}")
        stream.flush()
        os.fsync(stream.fileno())
    return beside.rename(folder / shard.file)


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor begins after it: wide elements first, so that each is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _NAMES:
            raise CompressError(f"{name} has dtype {tensor.dtype}, which safetensors does not hold")
        places[name], begin = end, end
        end += size_in_bytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _check(name: str, value: Tensor, expected: Mapping[str, Tensor]) -> None:
    wanted = expected[name]
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise CompressError(f"{name} is {value.dtype} {tuple(value.shape)}, not {wanted.dtype} {tuple(wanted.shape)}")


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
