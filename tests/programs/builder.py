"""A random program is a list of choices: every choice is one call of ``draw(options)``.

``hypothesis`` and ``random.Random`` can both supply it. A seeded program has a source of its own for every step, so
that steps can be left out and the others stay what they were: ``seeded(17, steps=(0, 3))`` is a smaller ``seeded(17)``.

The graph is made directly, node by node, and every op runs at once on small tensors: their values are the nodes'
``meta["val"]``. Nothing is traced, so that a program costs a millisecond or two.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.plan import Step
from fxcompress.program import Origin, Program
from fxcompress.rewrite import rewrite

aten = torch.ops.aten
Draw = Callable[[Sequence[Any]], Any]

BATCH = 5  # divides no other size: a dim with this factor holds the batch
SIZES = (2, 3, 4, 6, 6, 8, 12, 12)
LARGEST = 4000  # elements of a value that later steps may use


@dataclass
class Builder:
    """A graph in the making. ``pool`` holds the values that the next step may use."""

    draw: Draw
    symbolic: bool = False  # sizes that hold the batch are written as -1
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: dict[str, Tensor] = field(default_factory=dict)
    pool: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    noise: torch.Generator = field(default_factory=torch.Generator)

    def flip(self) -> bool:
        return self.draw((True, False))

    def size(self) -> int:
        return self.draw(SIZES)

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(op, args, kwargs)
        node.meta["val"] = op(*_values(args), **_values(kwargs))
        return node

    def input(self, name: str, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        self.inputs.append(node)
        return node

    def weight(self, *shape: int) -> fx.Node:
        """A parameter; one that is there already if it fits and chance will have it, read once more: a tie."""
        fitting = [name for name, t in self.root.items() if t.shape == shape and t.is_floating_point()]
        if fitting and self.draw((True, *[False] * 5)):
            return self._read(self.draw(fitting))
        value = torch.randn(shape, generator=self.noise, dtype=torch.float64)
        value = value / shape[-1] ** 0.5 if len(shape) > 1 else 1 + 0.3 * value
        return self.parameter(value)

    def parameter(self, value: Tensor) -> fx.Node:
        name = f"p{len(self.root)}"
        self.root[name] = torch.nn.Parameter(value, requires_grad=False)
        return self._read(name)

    def _read(self, name: str) -> fx.Node:
        with self.graph.inserting_before(self._first_call()):
            node = self.graph.get_attr(name)
        node.meta["val"] = self.root[name].detach()
        return node

    def indices(self, below: int, *shape: int) -> fx.Node:
        """A buffer of indices."""
        return self.parameter(torch.randint(below, shape, generator=self.noise))

    def maybe_weight(self, *shape: int) -> fx.Node | None:
        return self.weight(*shape) if self.flip() else None

    def pick(self, accept: Callable[[fx.Node], bool] = lambda _: True) -> fx.Node | None:
        """A value of the pool, more often a late one; None where no value will do."""
        fitting = [node for node in self.pool if accept(node)]
        if not fitting:
            return None
        return self.draw(fitting[-3:] if self.draw((True, True, False)) else fitting)

    def add(self, *nodes: fx.Node) -> None:
        """Offer values to later steps, unless there are too many, or so large that rounding errors would grow."""
        for node in nodes:
            value = node.meta["val"]
            if _is_float(node) and 0 < value.numel() <= LARGEST and value.abs().max() < 100:
                self.pool.append(node)

    def linear(self, x: fx.Node, out: int, bias: bool | None = None) -> fx.Node:
        with_bias = self.flip() if bias is None else bias
        weight = self.weight(out, dims(x)[-1])
        return self.call(aten.linear.default, x, weight, *([self.weight(out)] if with_bias else []))

    def reshape(self, x: fx.Node, *sizes: int) -> fx.Node:
        open_batch = (self.symbolic or self.flip()) and sum(map(is_batch, sizes)) == 1
        shape = [-1 if n % BATCH == 0 and open_batch else n for n in sizes]
        return self.call(aten.reshape.default, x, shape)

    def _first_call(self) -> fx.Node:
        """Parameters and inputs stand before the calls, as in a captured graph."""
        return next((node for node in self.graph.nodes if node.op == "call_function"), self.graph._root)

    def finish(self, outputs: Sequence[fx.Node]) -> Trial:
        self.graph.output(tuple(outputs))
        self.graph.eliminate_dead_code()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        root: dict[str, Any] = {name: tensor for name, tensor in self.root.items() if name in used}
        spec = pytree.tree_flatten(tuple(range(len(outputs))))[1]
        names: dict[str, tuple[str, ...]] = {name: (name,) for name in root}
        module = fx.GraphModule(root, self.graph)
        return Trial(module, tuple(n.name for n in self.inputs), spec, Origin(torch.nn.Module), names)


@dataclass
class Trial(Program):
    """A program that is rewritten in place and put back, so that one analysis serves many rewrites."""

    def changed(self) -> None:
        """Nothing is computed anew: within ``rewritten`` the analysis is that of the original."""

    @property
    def values(self) -> list[Tensor]:
        """The inputs that the program was built with."""
        return [node.meta["val"] for node in self.graph.nodes if node.op == "placeholder"]

    @contextlib.contextmanager
    def rewritten(self, step: Step) -> Iterator[dict[str, Tensor]]:
        """The program after a step; gives for every parameter which elements of the original it consists of.

        The rewrite sees parameters that hold their own positions, and so cannot depend on their values.
        """
        before = {name: tensor.detach() for name, tensor in self.state.items()}
        calls = [(node, node.args, node.kwargs) for node in self.graph.nodes if node.op == "call_function"]
        try:
            for name, tensor in before.items():
                positions = torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
                self._put(name, positions)
            rewrite(self, step)
            origin = {name: tensor.detach().long() for name, tensor in self.state.items()}
            for name, index in origin.items():
                self._put(name, before[name].flatten()[index])
            yield origin
        finally:
            for name, tensor in before.items():
                self._put(name, tensor)
            for node, args, kwargs in calls:
                node.args, node.kwargs = args, kwargs

    def _put(self, name: str, tensor: Tensor) -> None:
        self.set_state(name, torch.nn.Parameter(tensor, requires_grad=False))


def dims(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _is_float(node: fx.Node) -> bool:
    return node.meta["val"].is_floating_point()


def divisors(n: int) -> list[int]:
    """The divisors of n but for 1 and n."""
    return [d for d in range(2, n) if n % d == 0]


def is_batch(n: int) -> bool:
    return n % BATCH == 0


def _values(args: Any) -> Any:
    return fx.node.map_arg(args, lambda node: node.meta["val"])


def sources(seed: int, steps: Sequence[int]) -> list[Draw]:
    """One stream of choices for each step, for the inputs and for the outputs."""
    return [random.Random(f"{seed}/{name}").choice for name in ("inputs", *steps, "outputs")]
