"""A model's directory as the command line takes it: every check that can be made is made before weights are read.

Nothing is downloaded, no code of a checkpoint is run and no pickle is opened. Each refusal is a CompressError of one or
two lines that names the file, the field or the tensor.
"""

from __future__ import annotations

import copy
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fxcompress import compat
from fxcompress.bounded import read_json
from fxcompress.errors import CompressError
from fxcompress.files import INDEX, WEIGHTS, inside, read_header, weight_files
from fxcompress.stored import Files, Stored

CONFIG = "config.json"
_MOST_CONFIG = 1 << 24  # bytes
_MOST_LAYERS = 1 << 12  # the deepest models have some hundreds
_COUNTS_LAYERS = re.compile(r"\w*layers?|layer_types|layers_block_type")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """A directory with config and weights, or a config alone (``files`` is empty then)."""

    path: Path
    config: Any
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def dtype(self) -> torch.dtype:
        """What the config says, else what the first floating-point tensor of the weights is."""
        return self.config.dtype or _first_dtype(self.files) or torch.float32

    def on_meta(self) -> Any:
        """The model without values: sizes, names, dtypes and ops are all there."""
        with torch.device("meta"):
            model = self._build(self.dtype)
        compat.widen_float32_parts(model, self.dtype)
        return model

    def on_meta_in_float32(self) -> Any:
        """The same, computing in float32 where it would in a narrower type."""
        with torch.device("meta"):
            return self._build(torch.promote_types(self.dtype, torch.float32))

    def stored(self) -> Stored:
        """The weights, to be read one by one. Raises CompressError where transformers would make some of them up."""
        self.require_weights()
        stored = Stored(self.on_meta(), Files(self.files))
        self._refuse_surplus(stored)
        self._refuse_made_up(stored)
        return stored

    def with_random_weights(self, seed: int = 0) -> Any:
        """The model as its class initialises it."""
        torch.manual_seed(seed)
        return self._build(self.dtype)

    def require_weights(self) -> None:
        if not self.files:
            raise CompressError(f"{self.path} has no weights, neither {WEIGHTS} nor {INDEX}; --random makes some up")

    def check_weights(self) -> None:
        """Raise CompressError where the weights are not those that the config says, as far as their headers tell."""
        self.stored()

    def left_out(self) -> str:
        """What the files hold and the model has no use for, as a sentence; empty if nothing."""
        names = self.stored().unexpected
        return f"{_count(names)} in the files and not in the model, and left out: {_some(names)}" if names else ""

    def _build(self, dtype: torch.dtype) -> Any:
        try:
            return AutoModelForCausalLM.from_config(copy.deepcopy(self.config), dtype=dtype).eval()
        except Exception as error:  # what a class says to sizes that do not fit may be any exception
            raise CompressError(f"no model can be built from {self.path}: {_first_line(error)}") from error

    def _refuse_surplus(self, stored: Stored) -> None:
        if stored.surplus:
            raise CompressError(
                f"{self.folder}: {_count(stored.surplus)} of layers that the config does not count:"
                f" {_some(stored.surplus)}; correct its number of layers, or take them out of the files"
            )

    def _refuse_made_up(self, stored: Stored) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.model.state_dict().items()}
        tied = set(stored.model.all_tied_weights_keys)
        missing = sorted(name for name in shapes if name not in stored and name not in tied)
        if missing:
            raise CompressError(f"{self.folder}: {_count(missing)} missing from the weights: {_some(missing)}")
        found = {name: stored.on_meta(name) for name in shapes if name in stored}
        unlike = sorted(name for name, tensor in found.items() if tuple(tensor.shape) != shapes[name])
        if unlike:
            name = unlike[0]
            raise CompressError(
                f"{self.folder}: {_count(unlike)} of another shape than the config says:"
                f" {name} is {tuple(found[name].shape)}, not {shapes[name]}"
            )
        packed = sorted(n for n, t in found.items() if stored.dtypes[n].is_floating_point and not _holds_weights(t))
        if packed:
            name = packed[0]
            raise CompressError(
                f"{self.folder}: {_count(packed)} quantised: {name} is stored as {found[name].dtype}; compress the"
                " unquantised model instead"
            )


_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Check a model's directory, or a config file, without reading the weights' values."""
    given = Path(path)
    file = given / CONFIG if given.is_dir() else given
    if not given.exists():
        raise CompressError(f"{given} does not exist: a model is a directory with {CONFIG}, or a config file")
    if not file.is_file():
        raise CompressError(f"{given} holds no {CONFIG}: it is not a model's directory")
    config = _read_config(file)
    files = tuple(dict.fromkeys(weight_files(given).values())) if given.is_dir() else ()
    return Checkpoint(given, config, files)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies beside a model."""
    try:
        return AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # the tokenizers library raises bare ones
        raise CompressError(f"{folder} has no tokenizer that can be read: {_first_line(error)}") from error


def _read_config(file: Path) -> Any:
    inside(file.parent, file.name)
    values = read_json(file, _MOST_CONFIG)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CompressError(f"{file} is not a model's config: it has no model_type")
    kind = values["model_type"]
    if kind not in CONFIG_MAPPING:
        raise CompressError(f"{file}: model_type {kind!r} is unknown to transformers {_hint(kind, values)}")
    if values.get("quantization_config"):
        said = values["quantization_config"]
        method = said.get("quant_method", "some method") if isinstance(said, dict) else "some method"
        raise CompressError(f"{file}: the weights are quantised ({method}); compress the unquantised model instead")
    _refuse_endless(file, values)
    try:
        config = AutoConfig.from_pretrained(file, **_LOCAL)
        config._name_or_path = str(file.parent)  # as a model loaded from there has it
    except Exception as error:  # a config's validator may raise any exception
        raise CompressError(f"{file} is refused by transformers: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CompressError(f"{file}: transformers has no causal language model of model_type {kind!r}")
    return config


def _refuse_endless(file: Path, values: dict[str, Any]) -> None:
    """Layers are made one by one, also on meta, and configs make lists as long: a large number would take for ever."""
    for name, value in values.items():
        count = len(value) if isinstance(value, list) else value if isinstance(value, int) else 0
        if _COUNTS_LAYERS.fullmatch(name) and count > _MOST_LAYERS:
            raise CompressError(f"{file}: {name}={count:,} is more than the {_MOST_LAYERS:,} layers built here")


def _hint(kind: str, values: dict[str, Any]) -> str:
    near = difflib.get_close_matches(str(kind), CONFIG_MAPPING.keys(), n=3)
    if "auto_map" in values:
        return f"{transformers.__version__}; the checkpoint brings code of its own, which is never run"
    return transformers.__version__ + (f"; did you mean {' or '.join(near)}?" if near else "")


def _first_dtype(files: tuple[Path, ...]) -> torch.dtype | None:
    stored = (tensor.dtype for file in files for tensor in read_header(file).values())
    return next((_DTYPES[dtype] for dtype in stored if dtype in _DTYPES), None)


def _holds_weights(tensor: Tensor) -> bool:
    """Whole numbers and those of eight bits are weights only together with a scale, which is not read here."""
    return tensor.dtype in _DTYPES.values()


def _first_line(error: BaseException) -> str:
    """The first line that says something: headings end in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not line.endswith(":")), lines[0])


def _count(tensors: list) -> str:
    return f"{len(tensors)} tensor{'s are' if len(tensors) > 1 else ' is'}"


def _some(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
