"""Constants that a class computes, rotary frequencies say, as precise as the class computes them.

``model.bfloat16()`` rounds them with the weights, and no file remembers that: whatever loads the result has them whole.
A graph of the rounded ones would differ from every model that its result is loaded as, so capture takes the class's.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fxcompress.ondemand import buffers
from fxcompress.streamed import wide


@contextlib.contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """A model of transformers for a while with its class's own values in buffers that are a rounding of them."""
    given = {name: (model.get_buffer(name), own) for name, own in _own(model).items()}
    try:
        for name, (_, own) in given.items():
            _put(model, name, own)
        yield
    finally:
        for name, (rounded, _) in given.items():
            _put(model, name, rounded)


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The class's values, on the model's device, where those of the model are the same in fewer bits."""
    if not isinstance(model, PreTrainedModel):
        return {}
    narrow = {n: b for n, b in model.named_non_persistent_buffers() if wide(b.dtype) != b.dtype and not b.is_meta}
    if not narrow:
        return {}
    try:
        with torch.device("meta"):
            bare = type(model)(copy.deepcopy(model.config))
        own = buffers(bare)
    except Exception:  # a class that wants more than a config; its constants stay as they are
        return {}
    found = {name: own[name].to(rounded.device) for name, rounded in narrow.items() if name in own}
    return {name: value for name, value in found.items() if torch.equal(value.to(narrow[name].dtype), narrow[name])}


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._buffers[leaf] = value
