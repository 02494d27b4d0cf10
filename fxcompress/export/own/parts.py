"""What stands in a model where something was cut: projections that skip positions, and modules that are gone.

    narrow      y[..., gives] = f(x[..., reads]), zeros elsewhere     the module keeps its name and its class
    absent      y = 0   or   y = x                                    and caches count on

A removed attention still tells its layer's cache how many tokens went by, with keys and values of no heads: models read
lengths off any layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from fxcompress.export.own.spec import Absent, Narrow
from fxcompress.plan import read_ranges


def narrow(module: nn.Module, law: Narrow) -> None:
    """Let a module work on its positions. Hooks, so that its parameters keep their names."""
    with torch.device("cpu"):  # a model is built on ``meta`` while it is loaded
        reads, gives = (r if r is None else read_ranges(r).tolist() for r in (law.reads, law.gives))
    if reads is not None:
        module.register_forward_pre_hook(_Reads(reads))
    if gives is not None:
        module.register_forward_hook(_Gives(gives, law.width))


class _Positions:
    """A list of positions as a tensor on the device where it is used; no buffer, so that no checkpoint has it."""

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return torch.tensor(self.positions, device=device)
        if device not in self._on:
            self._on[device] = torch.tensor(self.positions, device=device)
        return self._on[device]

    def __deepcopy__(self, memo: dict) -> Any:
        return type(self)(**{k: v for k, v in self.__dict__.items() if not k.startswith("_")})


class _Reads(_Positions):
    def __call__(self, module: nn.Module, args: tuple) -> tuple:
        return (args[0].index_select(-1, self.on(args[0].device)), *args[1:])


class _Gives(_Positions):
    def __init__(self, positions: Sequence[int], width: int) -> None:
        super().__init__(positions)
        self.width = width

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        wide = output.new_zeros((*output.shape[:-1], self.width))
        return wide.index_copy(-1, self.on(output.device), output)


class AbsentModule(nn.Module):
    """In the place of a module that was removed."""

    def __init__(self, law: Absent, layer: int | None, old: nn.Module) -> None:
        super().__init__()
        for name, value in vars(old).items():  # models ask their layers what they are
            if not name.startswith("_") and isinstance(value, str | int | float | None):
                setattr(self, name, value)
        self.law, self.layer = law, layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        hidden = next(x for x in given if isinstance(x, Tensor) and x.is_floating_point())
        cache = next((x for x in given if isinstance(x, Cache)), None)
        if cache is not None and self.layer is not None:
            for what in self.law.counts:
                _COUNT[what](cache, self.layer, hidden)
        value = hidden if self.law.law == "pass" else torch.zeros_like(hidden)
        gives = self.law.gives
        return value if gives == "hidden" else tuple(value if place == "hidden" else None for place in gives)

    def extra_repr(self) -> str:
        return self.law.law


def _count_tokens(cache: Cache, layer: int, hidden: Tensor) -> None:
    """Keys and values of no heads: a length, and no memory."""
    batch, length = hidden.shape[:2]
    nothing = hidden.new_zeros((batch, 0, length, 1))  # (batch, heads, length, channels)
    cache.update(nothing, nothing, layer)


def _count_state(cache: Cache, layer: int, hidden: Tensor) -> None:
    """A state of no channels, so that the layer has been seen."""
    nothing = hidden.new_zeros((hidden.shape[0], 0, 1))
    cache.update_conv_state(nothing, layer)
    cache.update_recurrent_state(nothing, layer)


_COUNT = {"tokens": _count_tokens, "state": _count_state}
