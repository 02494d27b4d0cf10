"""A model of transformers whose weights are read when they are used: a layer's when the layer runs, and let go after.

So a model larger than memory runs as its class runs it. Buffers that no checkpoint holds are computed, as loading does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxcompress import compat
from fxcompress.streamed import CPU, wide

Read: TypeAlias = "Callable[[str], Tensor]"
_Place: TypeAlias = "tuple[nn.Module, str, str]"  # (module, attribute, the tensor's name in the model)


def on_demand(model: Any, read: Read, device: torch.device = CPU) -> Any:
    """The model, which was built on ``meta``, ready to run; ``read`` gives a tensor by its name in the model."""
    compat.initialise_buffers(model, device)
    model.set_attn_implementation("eager")  # others may leave out what they cannot do, such as softcaps
    places: dict[str, list[_Place]] = {}
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            path, _, leaf = name.rpartition(".")
            places.setdefault(owner(path), []).append((model.get_submodule(path), leaf, name))
    for path, here in places.items():
        module = model.get_submodule(path)
        module.register_forward_pre_hook(partial(_bring, here, read))
        module.register_forward_hook(partial(_let_go, here), always_call=True)
    return model.eval()


@contextlib.contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 for a while: tensors of narrower types are widened where they are used."""
    narrow = {name: t for name, t in _tensors(model) if wide(t.dtype) != t.dtype and not t.is_meta}
    places: dict[str, list[_Place]] = {}
    for name in narrow:
        path, _, leaf = name.rpartition(".")
        places.setdefault(owner(path), []).append((model.get_submodule(path), leaf, name))
    hooks = []
    for path, here in places.items():
        module = model.get_submodule(path)
        bring = partial(_bring, here, lambda name: narrow[name].detach().float())
        hooks.append(module.register_forward_pre_hook(bring))
        hooks.append(module.register_forward_hook(partial(_put_back, here, narrow), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _put_back(places: list[_Place], tensors: Mapping[str, Tensor], *_: Any) -> None:
    for module, leaf, name in places:
        (module._parameters if leaf in module._parameters else module._buffers)[leaf] = tensors[name]  # type: ignore[assignment]


def buffers(model: Any) -> dict[str, Tensor]:
    """The buffers of a model on ``meta`` that its class computes and no checkpoint holds, with their values."""
    compat.initialise_buffers(model, CPU)
    return dict(model.named_non_persistent_buffers())


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def owner(path: str) -> str:
    """The outermost item of a list of modules, which may use the tensors of its parts; else the module itself."""
    parts = path.split(".")
    item = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: item + 1])


def _bring(places: list[_Place], read: Read, *_: Any) -> None:
    for module, leaf, name in places:
        _put(module, leaf, read(name))


def _let_go(places: list[_Place], *_: Any) -> None:
    for module, leaf, _name in places:
        _put(module, leaf, torch.empty_like(getattr(module, leaf), device="meta"))


def _put(module: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[leaf] = value
