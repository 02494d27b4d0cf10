"""Run a graph whose weights lie in files: each is read where a call uses it, and let go when the call is done.

The graph was captured on ``meta``, so that what it makes itself is asked for there; here it is made on the CPU.
Memory is that of the largest call's weights and of the activations that are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Readers: TypeAlias = "Mapping[str, Callable[[], Tensor]]"  # a tensor's name -> how its value is read

META, CPU = torch.device("meta"), torch.device("cpu")


@dataclass(frozen=True)
class _InFile:
    """Stands for a weight until a call uses it."""

    name: str


class Run(fx.Interpreter):
    """Runs a graph over weights that are in memory (``readers`` is empty) or in files."""

    def __init__(self, module: fx.GraphModule, readers: Readers) -> None:
        super().__init__(module)
        self.readers = readers

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _InFile(target) if target in self.readers else super().get_attr(target, args, kwargs)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        return self.arguments(n)

    def arguments(self, n: fx.Node, instead: Mapping[fx.Node, Tensor] | None = None) -> tuple[Any, Any]:
        """The values of a call's arguments, some of them replaced."""
        other = instead or {}
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: other[a] if a in other else self.value(a))
        if not self.readers:
            return args, kwargs
        return fx.node.map_aggregate((args, kwargs), lambda a: CPU if a == META else a)

    def value(self, node: fx.Node) -> Any:
        value = self.env[node]
        return self.read(value.name) if isinstance(value, _InFile) else value

    def read(self, name: str) -> Tensor:
        return self.readers[name]()
