"""Weights with zeros in fewer bytes: a bit for every weight, and the values that are not zero, row after row.

    NAME.bitmap    uint8, bit i % 8 of byte i // 8 says whether weight i is there      NAME.shape    int64
    NAME.nonzero   the others, in their dtype

In bfloat16 2:4 takes 0.5625 of the dense bytes, 50 % as much, 75 % 0.3125. A zero of the sign minus comes back as plus.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.stored import Files

PARTS = ("bitmap", "nonzero", "shape")


def pack(name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors that stand for one of any shape, by their names in a file."""
    flat = value.detach().cpu().contiguous().flatten()
    there = flat != 0
    bitmap = torch.from_numpy(np.packbits(there.numpy(), bitorder="little"))
    parts = (bitmap, flat[there], torch.tensor(value.shape, dtype=torch.int64))
    return {f"{name}.{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)}


def unpack(name: str, bitmap: Tensor, nonzero: Tensor, shape: Tensor) -> Tensor:
    """The inverse of ``pack``. Raises CompressError where the three do not belong together."""
    sizes = shape.tolist() if shape.dim() == 1 and shape.dtype == torch.int64 and shape.numel() <= 8 else [-1]
    count = math.prod(sizes) if all(0 <= n < 1 << 40 for n in sizes) else -1
    if count < 0 or bitmap.dtype != torch.uint8 or bitmap.shape != ((count + 7) // 8,):
        raise CompressError(f"{name} is packed with a shape and a bitmap that do not belong together")
    there = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=count, bitorder="little")).bool()
    if nonzero.shape != (int(there.sum()),):
        raise CompressError(f"{name} is packed with {nonzero.numel():,} values for {int(there.sum()):,} places")
    value = torch.zeros(count, dtype=nonzero.dtype)
    value[there] = nonzero
    return value.reshape(sizes)


class PackedFiles:
    """Tensors in files, of which some are packed, by the names of what they stand for."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __contains__(self, name: str) -> bool:
        return name in self.files or self._is_packed(name)

    def read(self, name: str) -> Tensor:
        if not self._is_packed(name):
            return self.files.read(name)
        return unpack(name, *(self.files.read(f"{name}.{part}") for part in PARTS))

    def on_meta(self, name: str) -> Tensor:
        """A tensor of its shape and dtype."""
        if not self._is_packed(name):
            return self.files.on_meta(name)
        sizes = self.files.read(f"{name}.shape").tolist()
        return torch.empty(sizes, dtype=self.files.on_meta(f"{name}.nonzero").dtype, device="meta")

    def _is_packed(self, name: str) -> bool:
        return all(f"{name}.{part}" in self.files for part in PARTS)
