"""The files of a checkpoint, checked before anything big is read: each there, whole, inside, and what the index says.

    index: {tensor: file}        must be        {tensor: file for each file, for each tensor in its header}

A safetensors file is a length (8 bytes), a header of that length (JSON: dtype, shape and place of every tensor) and the
values one after the other. The header says how long the file is; here that is computed, never allocated.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxcompress.bounded import parse_json, read_json, shown
from fxcompress.errors import CompressError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Stored:
    """What a header says of one tensor; its values are bytes ``begin`` to ``end``, counted after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def weight_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of every tensor of a checkpoint; none where there is a config alone.

    Raises CompressError, naming file and tensor, for pickles, for files that are missing, damaged or outside of the
    folder, and where the index and the headers of its files do not say the same.
    """
    single, index = (folder / WEIGHTS).is_file(), (folder / INDEX).is_file()
    if not single and not index:
        _refuse_pickles(folder)
        return {}
    if not index:
        file = inside(folder, WEIGHTS)
        return dict.fromkeys(read_header(file), file)
    placed = _read_index(folder / INDEX)
    if single and set(placed.values()) != {WEIGHTS}:
        raise CompressError(f"{folder} has both {WEIGHTS} and {INDEX}, which names other files: remove one of them")
    files = {name: inside(folder, name) for name in sorted(set(placed.values()))}
    for file in files.values():
        if not file.is_file():
            raise CompressError(f"{file} is missing: the index names {len(files)} files")
    _require_same(folder / INDEX, placed, {name: read_header(file) for name, file in files.items()})
    return {tensor: files[name] for tensor, name in placed.items()}


def inside(folder: Path, name: str) -> Path:
    """The file of that name in a folder. Raises CompressError where the name, or the link that it is, leads elsewhere.

    Only a download cache keeps its files outside: ``snapshots/<revision>/x`` is a link into the ``blobs`` of the model,
    or into those that the models share.
    """
    if not is_plain(name):
        raise CompressError(f"{shown(name)} is not the name of a file in {folder}")
    file, root = folder / name, folder.resolve()
    try:
        real = file.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CompressError(f"{file} is a link that leads nowhere") from error
    model = root.parent.parent
    blobs = [model / "blobs", model.parent / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(place) for place in (root, *blobs)):
        raise CompressError(f"{file} is a link to a file outside its directory: {shown(str(real))}")
    return file


def is_plain(name: str) -> bool:
    """Is it the name of a file, and no path to one?"""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\")


def read_header(file: Path) -> dict[str, Stored]:
    """What the header of a safetensors file says of each tensor, once the file is as long as it says.

    Raises CompressError for everything else. Memory goes by the header that is there, not by what it claims.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MOST_HEADER, size - 8):
                raise CompressError(f"its header would be of {length:,} bytes")
            tensors = _tensors(parse_json(stream.read(length).decode()))
        _require_seamless(tensors, size - 8 - length)
    except (CompressError, OSError, UnicodeDecodeError) as error:
        raise CompressError(f"{file} ({_size(file)} bytes) is damaged or cut short: {error}") from error
    return tensors


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CompressError(f"{folder / pickles[0]} is a pickle and may run code: save the weights as safetensors")


def _read_index(index: Path) -> dict[str, str]:
    inside(index.parent, index.name)
    content = read_json(index, MOST_HEADER)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CompressError(f"{index} is not an index of weights: it has no weight_map")
    for tensor, name in placed.items():
        if not isinstance(name, str):
            raise CompressError(f"{index} is not an index of weights: {shown(tensor)} is in {shown(name)}, no file")
        if not is_plain(name):
            raise CompressError(f"{index} names a file outside its directory: {shown(name)}")
    return placed


def _require_same(index: Path, placed: Mapping[str, str], headers: Mapping[str, Iterable[str]]) -> None:
    """Raise CompressError unless each tensor is in the file in which the index has it, and in no other."""
    found: dict[str, str] = {}
    for name, tensors in headers.items():
        for tensor in tensors:
            if tensor in found:
                raise CompressError(f"{shown(tensor)} is in both {found[tensor]} and {name} of {index.parent}")
            if tensor not in placed:
                raise CompressError(f"{index} does not name {shown(tensor)}, which is in {name}")
            found[tensor] = name
    for tensor, name in placed.items():
        if tensor not in found:
            raise CompressError(f"{index} names {shown(tensor)}, which is not in {name}")
        if found[tensor] != name:
            raise CompressError(f"{index} has {shown(tensor)} in {name}, but it is in {found[tensor]}")


def _tensors(content: Any) -> dict[str, Stored]:
    if not isinstance(content, dict):
        raise CompressError("its header is no mapping of tensors")
    notes = content.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise CompressError("its __metadata__ is no mapping of texts")
    return {name: _stored(name, entry) for name, entry in content.items()}


def _stored(name: str, entry: Any) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            if dtype not in _BITS:
                raise CompressError(f"{shown(name)} has the unknown dtype {shown(dtype)}")
            if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)):
                raise CompressError(f"{shown(name)} has a shape or place that is no count: {reprlib.repr(entry)}")
            if not _takes(shape, _BITS[dtype], end - begin):
                of = f"{dtype} of the shape {reprlib.repr(tuple(shape))}"
                raise CompressError(f"{shown(name)} is {of}, which are not {end - begin:,} bytes")
            return Stored(dtype, tuple(shape), begin, end)
    raise CompressError(f"{shown(name)} has no dtype, shape and data_offsets: {reprlib.repr(entry)}")


def _takes(shape: list[int], bits: int, size: int) -> bool:
    """Do values of that shape take ``size`` bytes? Not told by the product, which may have millions of digits."""
    if 0 in shape:
        return size == 0
    total = bits
    for n in shape:
        total *= n
        if total > 8 * size:
            return False
    return total == 8 * size


def _require_seamless(tensors: Mapping[str, Stored], size: int) -> None:
    """Raise CompressError unless the tensors follow each other without gap or overlap, from 0 to ``size``."""
    order = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    ends = itertools.chain([0], (stored.end for _, stored in order))
    for (name, stored), end in zip(order, ends, strict=False):  # the last end is compared below
        if stored.begin != end:
            what = "overlaps with the tensor before it" if stored.begin < end else "comes after a gap"
            raise CompressError(f"{shown(name)} {what}")
    last = order[-1][1].end if order else 0
    if last != size:
        raise CompressError(f"its header is about {last:,} bytes of values, {size:,} are there")


def _size(file: Path) -> str:
    return f"{file.stat().st_size:,}" if file.exists() else "no"
