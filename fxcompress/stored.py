"""The tensors of a checkpoint by the names they have in the model, each read when it is asked for.

Files may hold them under other names and in other pieces (one tensor an expert): transformers has a table of
conversions for that, which is planned here on ``meta`` and carried out for one tensor at a time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from fxcompress.errors import CompressError

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}


_COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")  # older files hold what classes compute by now
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Files:
    """Tensors by their names in safetensors files; reading one takes memory for that one."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._open: dict[str, Any] = {}
        for file in files:
            # not mapped: pages of a mapped file count as memory of this process until it lets the whole file go
            stream = _opened(file)
            self._open.update(dict.fromkeys(stream.keys(), stream))

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def names(self) -> list[str]:
        return list(self._open)

    def read(self, name: str) -> Tensor:
        try:
            return self._open[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CompressError(f"{name} cannot be read: {error}") from error

    def on_meta(self, name: str) -> Tensor:
        """A tensor of its shape and dtype, as the header says."""
        piece = self._open[name].get_slice(name)
        dtype = _DTYPES.get(piece.get_dtype())
        if dtype is None:
            raise CompressError(f"{name} is stored as {piece.get_dtype()}, which is no dtype of weights")
        return torch.empty(piece.get_shape(), dtype=dtype, device="meta")


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise CompressError(f"{file} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the model comes from: names in files by the pattern that they matched, and a conversion."""

    target: str  # the tensor of the model, or the first of those that the conversion makes
    names: tuple[tuple[str, str], ...]  # (pattern, name in a file)
    conversion: Any = None


class Stored:
    """The tensors of a model in files, by their names in the model. ``model`` is on meta and tells names and dtypes."""

    def __init__(self, model: Any, files: Files) -> None:
        self.model, self.files = model, files
        self.dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._unknown: list[str] = []
        self._sources = self._plan()
        self._tied = model.all_tied_weights_keys  # a name that is not stored -> the name of the same tensor that is

    def __contains__(self, name: str) -> bool:
        """Is it stored, under its own name?"""
        return name in self._sources

    def read(self, name: str) -> Tensor:
        """The value of a parameter or buffer in the dtype that the model has it in."""
        stored = name if name in self._sources else self._tied[name]
        return self._converted(stored, self.files.read).to(self.dtypes[name])

    def on_meta(self, name: str) -> Tensor:
        """Its shape in the model, and the dtype in which it is stored."""
        stored = name if name in self._sources else self._tied[name]
        return self._converted(stored, self.files.on_meta)

    @property
    def unexpected(self) -> list[str]:
        """Names in the files that the model has no use for, but for those that its class says it passes over."""
        passed_over = "|".join([*(self.model._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED])
        return [name for name in self._unknown if not re.search(passed_over, name)]

    @property
    def surplus(self) -> list[str]:
        """Those of them that are like tensors of the model but for a number: layers that the config does not count."""
        known = {_NUMBER.sub("#", name) for name in [*self.dtypes, *self.files.names()] if name not in self._unknown}
        return [name for name in self.unexpected if _NUMBER.sub("#", name) in known]

    def _plan(self) -> dict[str, _Source]:
        """For every tensor of the model where it comes from, as loading with transformers would have it."""
        mapping = get_model_conversion_mapping(self.model)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        collected: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(self.files.names(), key=dot_natural_key):
            target, pattern = self._renamed(name, renamings, converters)
            if target in self.dtypes or pattern is not None:
                collected.setdefault(target, []).append((pattern or "", name))
            else:
                self._unknown.append(name)
        sources: dict[str, _Source] = {}
        for target, names in collected.items():
            converter = by_pattern.get(names[0][0])
            source = _Source(target, tuple(names), converter)
            made = [target] if converter is None else list(self._run(source, self.files.on_meta))
            sources |= {name: source for name in made if name in self.dtypes}
            self._unknown += [] if set(made) & self.dtypes.keys() else [name for _, name in names]
        self.model._weight_conversions = [m for m in mapping if m.was_used()]  # which saving reverts
        return sources

    def _renamed(self, name: str, renamings: list, converters: list) -> tuple[str, str | None]:
        prefix = self.model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, self.dtypes)
        if target not in self.dtypes and name in self.dtypes:
            return rename_source_key(name, [], [], prefix, self.dtypes)
        return target, pattern

    def _converted(self, name: str, read: Any) -> Tensor:
        source = self._sources[name]
        if source.conversion is None:
            return read(source.names[0][1])
        return self._run(source, read)[name]

    def _run(self, source: _Source, read: Any) -> Mapping[str, Tensor]:
        conversion = copy.deepcopy(source.conversion)
        for pattern, name in source.names:
            conversion.add_tensor(source.target, name, pattern, read(name))
        made = conversion.convert(source.target, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
