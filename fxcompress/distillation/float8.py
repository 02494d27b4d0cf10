"""Training in FP8 as Nemotron-H was (arXiv 2504.03624, section 2.4): current scaling of whole tensors.

    s = largest of the format / largest |x|,  x₈ = round(s x)      weights and activations E4M3, gradients E5M2
    y = x₈ w₈ᵀ / (s_x s_w),   ∂x = ∂y₈ w₈ / …,   ∂w = ∂y₈ᵀ x₈ / …   every matrix of a layer, forward and backward

The first and last layers, the head, embeddings and routers stay as they are. The products are torchao's; weights stay
in their own type between steps, so that masks, optimiser and files see nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxcompress.capture import capture
from fxcompress.errors import CompressError
from fxcompress.projections import layer_of, projections

CAPABILITY = (8, 9)  # the first NVIDIA GPUs with FP8 products
MULTIPLE = 16  # of both sizes of a matrix, for them


@dataclass(frozen=True)
class Float8:
    """keep_first, keep_last: layers that stay in their type, four each in the paper and two in released settings.

    emulate: compute in the wider type what FP8 products would give, on any device; for tests, it saves nothing.
    """

    keep_first: int = 4
    keep_last: int = 4
    emulate: bool = False

    def __post_init__(self) -> None:
        for name in ("keep_first", "keep_last"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise CompressError(f"{name}={getattr(self, name)!r}: a number of layers, 0 or more")


@contextlib.contextmanager
def in_float8(model: nn.Module, recipe: Float8, layers: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Linear layers of a model, ``convertible`` ones by default, compute in FP8 for a while; gives their names.

    Raises CompressError where torchao or the hardware is missing, and where no layer is left to convert.
    """
    require_float8(next(model.parameters()).device, recipe)
    names = convertible(model, recipe) if layers is None else list(layers)
    given = {name: model.get_submodule(name) for name in names}
    torchao = _torchao()
    config = torchao.Float8LinearConfig(emulate=recipe.emulate)
    torchao.convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in given)
    try:
        yield names
    finally:
        for name, linear in given.items():  # the same parameters, which the steps have changed
            linear.weight = model.get_submodule(name).weight
            model.set_submodule(name, linear)


def convertible(model: nn.Module, recipe: Float8) -> list[str]:
    """Linear layers by name: matrices that weight pruning would take, in all but the first and last layers."""
    program, modules = capture(model), dict(model.named_modules())
    inner = {
        path for items in program.layers().values() for path in items[recipe.keep_first : len(items) - recipe.keep_last]
    }
    found = []
    for p in projections(program):
        for name in program.names.get(p.name, (p.name,)):
            module = name.removesuffix(".weight")
            if not p.dense and layer_of(program, name) in inner and _fits(modules.get(module)):
                found.append(module)
    if not found:
        raise CompressError(
            f"FP8: no linear layer is left to convert besides the first {recipe.keep_first} and last {recipe.keep_last}"
            f" layers; sizes have to be multiples of {MULTIPLE}"
        )
    return found


def _fits(module: nn.Module | None) -> bool:
    """No subclass: what it does besides would be lost."""
    if type(module) is not nn.Linear:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _torchao() -> Any:
    try:
        from torchao import float8
    except ImportError as error:
        raise CompressError("FP8 needs torchao: pip install 'fxcompress[fp8]'") from error
    return float8


def require_float8(device: torch.device, recipe: Float8) -> None:
    """Raise CompressError where torchao or the hardware for it is missing."""
    if recipe.emulate:
        _torchao()
        return
    least = ".".join(map(str, CAPABILITY))
    if device.type != "cuda":
        raise CompressError(
            f"FP8 needs an NVIDIA GPU of compute capability {least} or more, and the model is on {device};"
            " Float8(emulate=True) computes the same numbers slowly"
        )
    has = torch.cuda.get_device_capability(device)
    if has < CAPABILITY:
        raise CompressError(
            f"FP8 needs compute capability {least}, and {torch.cuda.get_device_name(device)} has {has[0]}.{has[1]}:"
            " leave it out"
        )
    _torchao()
