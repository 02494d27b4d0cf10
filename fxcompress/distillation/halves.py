"""A causal language model as two halves: what gives the last hidden states, and what makes logits of them.

    model(ids).logits  =  tail(body(ids))

The tail is the class's own forward with its base model replaced by the hidden states that are there already, so that
soft caps, scales and casts of the class stay in it. No class is known here; that the halves give what the model gives
is checked on a small batch, and where they do not the model is taken as a whole, whose tail changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fxcompress.verify import difference

_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}  # the halves run the same ops, at other shapes
_EXACT = 1e-5


@dataclass(frozen=True)
class Halves:
    """``body(input_ids, attention_mask)`` to (batch, length, width); ``tail`` of (positions, width) to logits.

    whole: why the model could not be taken apart, empty if it could. Then the body gives logits, of all positions at
    once.
    """

    body: Callable[..., Tensor]
    tail: Callable[[Tensor], Tensor]
    whole: str = ""

    def compiled(self) -> Halves:
        """The body, in which the time goes, through ``torch.compile``."""
        return replace(self, body=torch.compile(self.body))


def halves_of(model: nn.Module, ids: Tensor) -> Halves:
    """Body and tail of a model, compared with it on token ids (batch, length), the first of a row taken for padding."""
    base = model.base_model if isinstance(model, PreTrainedModel) else model
    if base is model:
        return _whole(model, f"{type(model).__name__} has no base model of its own")
    halves = Halves(_Body(base), _Tail(model, base))
    try:
        error = _error(model, halves, ids)
    except Exception as failure:  # a forward that asks its base model for more may fail in any way
        return _whole(model, f"the last layer of {type(model).__name__} does not run alone: {failure}")
    dtype = next(model.parameters()).dtype
    if not error <= _TOLERANCE.get(dtype, _EXACT):
        return _whole(model, f"the two halves of {type(model).__name__} differ from it by {error:.2g}")
    return halves


def _whole(model: nn.Module, why: str) -> Halves:
    return Halves(lambda **inputs: model(**inputs, use_cache=False).logits, lambda logits: logits, why)


@torch.no_grad()
def _error(model: nn.Module, halves: Halves, ids: Tensor) -> float:
    """As models run for scoring: dropout would make each run another."""
    mask = torch.ones_like(ids)
    mask[0, : ids.shape[1] // 2] = 0
    training = model.training
    model.eval()
    try:
        ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        theirs = halves.tail(halves.body(input_ids=ids, attention_mask=mask)[mask.bool()])
    finally:
        model.train(training)
    return difference([ours[mask.bool()]], [theirs])


@dataclass(frozen=True)
class _Body:
    base: nn.Module

    def __call__(self, **inputs: Tensor) -> Tensor:
        return self.base(**inputs, use_cache=False).last_hidden_state


class _Tail:
    """A model's own forward around hidden states: a copy of the model that shares all modules but its base."""

    def __init__(self, model: Any, base: nn.Module) -> None:
        self.given = _Given(base)
        self.model = copy.copy(model)
        # the copy has the model's dict of modules: replacing the base there would take it from the model
        self.model.__dict__["_modules"] = {
            name: self.given if module is base else module for name, module in model._modules.items()
        }

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (positions, vocabulary) of hidden states (positions, width)."""
        self.given.hidden = hidden[None]
        try:
            return self.model(use_cache=False, return_dict=True).logits[0]
        finally:
            self.given.hidden = None


class _Given(nn.Module):
    """Stands for a base model, and for whatever part of it is called: it gives the hidden states that are there."""

    hidden: Tensor | None = None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.__dict__["base"] = base  # not a submodule: its parameters are not the tail's

    def forward(self, *_: Any, **__: Any) -> Any:
        assert self.hidden is not None
        return _Outputs((self.hidden,))

    def __getattr__(self, name: str) -> Any:
        """Some classes call a part of their base, some read a number that it has."""
        value = getattr(self.__dict__["base"], name)
        return self if isinstance(value, nn.Module) else value


class _Outputs(tuple):
    """Outputs of a base model that has hidden states and nothing else."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None
