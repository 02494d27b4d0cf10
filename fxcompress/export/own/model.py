"""The model class of a config of ours: its base, and then what differs from it.

base(config)  ->  modules with configs or sizes of their own constructed again  ->  what is absent, narrow or stored

An ordinary subclass of the base: ``generate``, caches, tying and the loading of weights are the base's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from fxcompress.errors import CompressError
from fxcompress.export.own.config import OwnConfig, set_fields
from fxcompress.export.own.parts import AbsentModule, narrow
from fxcompress.export.own.record import Call, Calls, module_classes, recording
from fxcompress.export.own.spec import Spec


def model_class(base: type, config: type) -> type:
    """The subclass of a model class that is built from configs of ours."""
    members = {"config_class": config, "__module__": __name__}
    return type(f"Compressed{base.__name__}", (OwnModel, base), members)


class OwnModel:
    """Mixed into the model class of a base."""

    _keep_in_fp32_modules_strict: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        base: Any = super().__init__
        stock = type(self).__mro__[2]
        classes = module_classes(lambda: stock(copy.deepcopy(config))) - {stock}
        with recording(classes) as calls:
            base(config, *args, **kwargs)
            assemble(self, config.spec, calls)  # type: ignore[arg-type]
        exact = {name for name, stored in config.spec.buffers.items() if stored.dtype == "float32"}
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), *exact}
        if config.spec.absent:
            _forget_ties(self)  # type: ignore[arg-type]
        self.tie_weights()  # type: ignore[attr-defined]


def assemble(model: nn.Module, spec: Spec, calls: Calls) -> None:
    """Give a model of the base what the spec says, outer modules first. Raises CompressError where it does not fit."""
    apart = {path for path in spec.configs if path} | set(spec.arguments)
    for path in sorted(apart, key=lambda path: (path.count("."), path)):
        old = module_at(model, path)
        if old not in calls:
            raise CompressError(f"{path} of {type(model).__name__} is not constructed in a way that can be repeated")
        new = construct(calls[old], spec.configs.get(path, {}), spec.arguments.get(path, {}), path)
        replace(model, old, new)
    for path, law in spec.absent.items():
        old = module_at(model, path)
        replace(model, old, AbsentModule(law, layer_of(old), old))
    for path, at in spec.narrow.items():
        narrow(module_at(model, path), at)
    for name, stored in spec.buffers.items():
        owner, _, last = name.rpartition(".")
        dtype = getattr(torch, stored.dtype)
        module_at(model, owner).register_buffer(last, torch.zeros(stored.shape, dtype=dtype), persistent=True)
    for name, value in spec.constants.items():
        owner, _, last = name.rpartition(".")
        module = module_at(model, owner)
        if type(module.__dict__.get(last)) not in (float, int):
            raise CompressError(f"{name} is no number that {type(module).__name__} has")
        setattr(module, last, value)


def _forget_ties(model: Any) -> None:
    """Drop ties with what is absent: a class says by patterns which tensors are tied, there or not."""
    for module in model.modules():
        ties = getattr(module, "_tied_weights_keys", None)
        if isinstance(ties, dict):
            names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
            there = {p: any(re.search(p, name) for name in names) for tie in ties.items() for p in tie}
            module._tied_weights_keys = {a: b for a, b in ties.items() if there[a] and there[b]}
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def construct(call: Call, fields: Any, sizes: Any, where: str) -> nn.Module:
    """A module once more, from its config with other fields and from other integer arguments."""
    unknown = sorted(set(sizes) - set(call.sizes))
    if unknown:
        raise CompressError(f"{call.kind.__name__} at {where} is given no size {unknown[0]!r}")
    config = None
    if fields:
        if call.config is None:
            raise CompressError(f"{call.kind.__name__} at {where} is constructed without a config")
        config = changed(call.config, fields, where)
    return call.again(config, sizes)


def changed(config: PreTrainedConfig, fields: Any, where: str) -> Any:
    """A copy of a config with other fields, past its checks: they hold for whole models."""
    own = copy.copy(config)
    own.__dict__.update(copy.copy(config.__dict__))
    set_fields(own, fields, where)
    return own


def module_at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CompressError(f"{type(model).__name__} has no module {path!r}") from None


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module where another stands, everywhere it stands, with the buffers that the model gave that one."""
    new.train(old.training)
    for name, buffer in old._buffers.items():
        if name not in new._buffers and not isinstance(new, AbsentModule):
            new.register_buffer(name, buffer, persistent=False)
    for owner, name in list(_places(model, old)):
        owner._modules[name] = new


def _places(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for owner in model.modules():
        for name, child in owner._modules.items():
            if child is module:
                yield owner, name


def layer_of(module: nn.Module) -> int | None:
    """The position of a module in the cache, where it has one: its own or that of something in it."""
    found = [getattr(m, "layer_idx", None) for m in module.modules()]
    return next((i for i in found if isinstance(i, int)), None)


__all__ = ["OwnConfig", "OwnModel", "assemble", "changed", "construct", "model_class", "module_at"]
