"""A model's tensors as a checkpoint of its class names and divides them, made layer by layer.

Loading may rename tensors and stack those of experts; writing reverts that, with the same table of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from fxcompress.errors import CompressError
from fxcompress.ondemand import owner


class Pieces:
    """The tensors of a file by their names there, on ``meta``; ``values`` makes them from those of the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        state = model.state_dict()
        dropped = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
        names = [name for name in state if name not in dropped]
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(owner(name.rpartition(".")[0]), []).append(name)
        self._groups = list(groups.values())
        self._group_of: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        for i, group in enumerate(self._groups):
            made = self._made({name: state[name].to("meta") for name in group})
            self.tensors |= made
            self._group_of |= dict.fromkeys(made, i)
        whole = self._made({name: state[name].to("meta") for name in names})
        if whole.keys() != self.tensors.keys():
            odd = sorted(whole.keys() ^ self.tensors.keys())[0]
            raise CompressError(f"{type(model).__name__} stores {odd} across layers, which cannot be written piecewise")

    def values(self, names: Sequence[str], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors of a file with their values; ``read`` gives those of the model. One layer is in memory."""
        for i in dict.fromkeys(self._group_of[name] for name in names):
            needed = [name for name in names if self._group_of[name] == i]
            made = self._made({name: read(name) for name in self._groups[i]})
            for name in needed:
                yield name, made.pop(name)

    def _made(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return revert_weight_conversion(self.model, tensors)
