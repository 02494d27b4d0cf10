"""Run a graph whose weights lie in files: each is read where a call uses it, and let go when the call is done.

The graph was captured on ``meta``, so that what it makes itself is asked for there; here it is made on the CPU.
Memory is that of the largest call's weights and of the activations that are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Readers: TypeAlias = "Mapping[str, Callable[[], Tensor]]"  # a tensor's name -> how its value is read

META, CPU = torch.device("meta"), torch.device("cpu")


def wide(value: Any) -> Any:
    """A dtype, float32 instead of a narrower float; anything else as it is."""
    return torch.float32 if value in (torch.float16, torch.bfloat16) else value


class Run(fx.Interpreter):
    """Runs a graph over weights that are in memory (``readers`` is empty) or in files."""

    def __init__(self, module: fx.GraphModule, readers: Readers) -> None:
        super().__init__(module)
        self.readers = readers
        self.held: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return None if target in self.readers else super().get_attr(target, args, kwargs)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        return self.arguments(n)

    def arguments(self, n: fx.Node, instead: Mapping[fx.Node, Tensor] | None = None) -> tuple[Any, Any]:
        """The values of a call's arguments, some of them replaced."""
        return self.filled((n.args, n.kwargs), instead)

    def filled(self, given: tuple[Any, Any], instead: Mapping[fx.Node, Tensor] | None = None) -> tuple[Any, Any]:
        """Arguments and keyword arguments with the values of nodes in their places."""
        other = instead or {}
        args, kwargs = fx.node.map_arg(given, lambda a: other[a] if a in other else self.value(a))
        if not self.readers:
            return args, kwargs
        return fx.node.map_aggregate((args, kwargs), lambda a: CPU if a == META else a)

    def value(self, node: fx.Node) -> Any:
        """A node's value; a weight in a file is read here, for one call."""
        if node.op != "get_attr":
            return self.env[node]
        name = str(node.target)
        if name not in self.readers:
            return super().get_attr(name, (), {})
        return self.held[name] if name in self.held else self.readers[name]()

    def hold(self, names: Iterable[str]) -> None:
        """Keep these weights until others are held."""
        self.held = {}
        self.held = {name: self.readers[name]() for name in names if name in self.readers}

    def run_part(self, nodes: Iterable[fx.Node], env: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Run some nodes with the values of earlier ones; returns what is alive after them."""
        self.env = env
        for node in nodes:
            if node not in self.env:
                self.env[node] = self.run_node(node)
            for used in self.user_to_last_uses.get(node, ()):
                self.env.pop(used, None)
        return self.env
