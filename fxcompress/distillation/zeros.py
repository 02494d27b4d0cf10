"""Zeros of a sparse student that training holds: after every step of the optimiser they are zero.

    gradient of a held weight = 0       so clipping and the optimiser's moments see only what is trained
    held weight after a step  = 0       whatever the optimiser adds, weight decay or noise

Held are the zeros of every weight with a declared pattern, and of matrices a tenth of which is zero, declared or not:
initialisation leaves no exact zeros, pruning does.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_PRUNED = 0.1  # part of a matrix


class Zeros:
    """The zeros of a module's weights as they are now, by the weights' names."""

    def __init__(self, module: nn.Module, declared: Collection[str] = ()) -> None:
        named = dict(module.named_parameters())
        self.kept = {name: p.detach() != 0 for name, p in named.items() if name in declared or _is_pruned(p)}
        self.parameters = {name: named[name] for name in self.kept}
        self.hooks = [
            parameter.register_hook(lambda gradient, name=name: gradient * self._mask(name, gradient))
            for name, parameter in self.parameters.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """To be called after each step of the optimiser."""
        for name, parameter in self.parameters.items():
            parameter.mul_(self._mask(name, parameter))

    @torch.no_grad()
    def restore_gradients(self) -> None:
        """To be called before clipping where hooks do not see gradients: those of a module that was spread."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parameter.grad.mul_(self._mask(name, parameter.grad))

    def distribute(self, module: nn.Module) -> None:
        """The module has been spread over processes since: each holds the zeros of its own pieces."""
        self.release()
        for name, parameter in module.named_parameters():
            if name in self.kept and isinstance(parameter, DTensor):
                self.parameters[name] = parameter
                mask = self.kept[name].to(parameter.device)
                # every process has the whole mask: nothing is sent
                self.kept[name] = distribute_tensor(
                    mask, parameter.device_mesh, parameter.placements, src_data_rank=None
                )

    def release(self) -> None:
        """The module is its owner's again."""
        for hook in self.hooks:
            hook.remove()

    def _mask(self, name: str, like: Tensor) -> Tensor:
        if self.kept[name].device != like.device:
            self.kept[name] = self.kept[name].to(like.device)  # the module has moved since
        return self.kept[name]


def _is_pruned(parameter: Tensor) -> bool:
    """A matrix that is zero altogether is not: it waits to be trained."""
    if parameter.dim() < 2 or not parameter.numel():
        return False
    part = float((parameter == 0).sum()) / parameter.numel()
    return _PRUNED <= part < 1
