"""A captured model: an FX graph over one set of real parameters, under their original names.

Tied weights are one tensor with several names. Analyses are pulled (``program.get(AxisMap)``), built once and kept
until the graph changes. A program shares its tensors with the model it was captured from until a pass cuts them.

The values may lie in files: then the tensors are on ``meta``, and ``readers`` has them one by one, cut as the graph is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress import graph
from fxcompress.streamed import CPU, META, Run, wide

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a program came from: enough to build a model of the same class again."""

    model_class: type
    config: Any = None  # the transformers config as captured, or None for a plain module
    generation_config: Any = None
    hooked: tuple[str, ...] = ()  # modules with forward hooks, which the graph follows and no config says


@dataclass(frozen=True)
class Lowered:
    """A matrix that a sparse op holds in a form of its own, see ``fxcompress.lowered``: what it was before."""

    op: str  # that multiplies by it, "csr_linear"
    call: Any  # the op that did
    shape: tuple[int, ...]
    requires_grad: bool


@dataclass
class Program:
    """The entry point ``forward``: placeholders are the tensor inputs by name, outputs are flat, in ``out_spec``."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec
    origin: Origin
    names: dict[str, tuple[str, ...]]  # every tensor's first name -> all of its names
    unused: dict[str, Tensor] = field(default_factory=dict)  # tensors of the model that its forward does not read
    # inputs whose values address an axis that was cut: the original value of each new one
    numbering: dict[str, Tensor] = field(default_factory=dict)
    readers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)  # values that are not in memory
    sparse: dict[str, str] = field(default_factory=dict)  # the pattern of a parameter's zeros, "0.5" or "2:4"
    lowered: dict[str, Lowered] = field(default_factory=dict)  # matrices that sparse ops hold, by their names
    _analyses: dict[type, Any] = field(default_factory=dict, repr=False)
    _valued: dict[fx.Node, graph.Valued] = field(default_factory=dict, repr=False)  # whose fake values are right

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = self.run(*self.bind(*args, **kwargs))
        return pytree.tree_unflatten(list(flat), self.out_spec)

    def run(self, *inputs: Tensor) -> Any:
        """The flat outputs for the inputs in order."""
        return Run(self.module, self.readers).run(*inputs) if self.readers else self.module(*inputs)

    def bind(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The inputs in order; a missing attention mask is all ones, missing positions count from 0."""
        given = dict(zip(self.inputs, args, strict=False)) | {k: v for k, v in kwargs.items() if v is not None}
        unknown = sorted(set(given) - set(self.inputs) - _IGNORED)
        if unknown:
            raise TypeError(f"unexpected inputs {unknown}; this program takes {list(self.inputs)}")
        return [given[name] if name in given else _default(name, given, self.inputs) for name in self.inputs]

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def state(self) -> dict[str, Tensor]:
        """Every parameter and buffer by its first name, each tensor once; also what forward does not read."""
        used = {name: graph.get_attr(self.module, name) for name in self.used_names()}
        return used | self.unused

    def used_names(self) -> list[str]:
        return list(dict.fromkeys(node.target for node in graph.states(self.graph)))

    def read(self, name: str) -> Tensor:
        """The value of a parameter or buffer, wherever it lies; one from a file is read anew each time."""
        return self.readers[name]() if name in self.readers else self.state[name].detach()

    @property
    def is_meta(self) -> bool:
        """Are there tensors without values, so that only sizes can be told?"""
        return any(tensor.is_meta for name, tensor in self.state.items() if name not in self.readers)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        device = next((p.device for _, p in self.parameters()), CPU)
        return CPU if device == META and self.readers else device

    def get(self, analysis: type[T]) -> T:
        """The analysis of this type, built on first use."""
        if analysis not in self._analyses:
            self._analyses[analysis] = analysis(self)  # type: ignore[call-arg]
        return self._analyses[analysis]

    def clone(self) -> Program:
        """A program of its own graph over the same tensors."""
        copied, nodes = fx.Graph(), dict[fx.Node, fx.Node]()
        output = copied.graph_copy(self.graph, nodes)
        copied.output(output).meta = dict(next(n for n in self.graph.nodes if n.op == "output").meta)
        right = [new for old, new in nodes.items() if old in self._valued and self._valued[old].still(old)]
        return replace(
            self,
            module=fx.GraphModule(self.module, copied),
            unused=dict(self.unused),
            numbering=dict(self.numbering),
            readers=dict(self.readers),
            sparse=dict(self.sparse),
            lowered=dict(self.lowered),
            _analyses={},
            _valued={node: graph.Valued.of(node) for node in right},
        )

    def set_state(self, name: str, value: Tensor) -> None:
        graph.set_tensor(self.module, name, value)

    def changed(self) -> None:
        """To be called after the graph or a tensor's shape changed: dead code out, lint, fresh values, no analyses."""
        graph.drop_dead_code(self.graph)
        self.graph.lint()
        self.module.recompile()
        graph.refresh(self.module, self._valued)
        self._valued = graph.valued(self.graph)
        self._analyses.clear()

    def map_state(self, function: Callable[[str, Tensor], Tensor]) -> Program:
        """A clone whose every tensor is the function of the name and tensor here; ties stay ties."""
        new = self.clone()
        for name, tensor in self.state.items():
            value = function(name, tensor.detach())
            if isinstance(tensor, torch.nn.Parameter):
                value = torch.nn.Parameter(value, requires_grad=tensor.requires_grad and value.is_floating_point())
            if name in new.unused:
                new.unused[name] = value
            else:
                new.set_state(name, value)
        return new

    def loaded(self) -> Program:
        """The same program with all its values in memory."""
        if not self.readers:
            return self
        new = self.map_state(lambda name, _: self.read(name))
        new.readers.clear()
        return new.on_device(CPU)

    def in_float64(self) -> Program:
        """The same program computing in float64 throughout: casts to narrower floats are widened with the weights."""
        new = self.map_state(lambda _, t: t.double() if t.is_floating_point() else t)
        graph.replace_arguments(new.graph, lambda a: torch.float64 if a in _FLOATS else a)
        graph.map_inputs(new.graph, lambda t: t.double() if t.is_floating_point() else t)
        new.changed()
        return new

    def widened(self) -> Program:
        """The same program computing in float32 where it would in a narrower type: for comparing what it computes.

        Its weights are widened one at a time, where they are used. On other devices than the CPU it is left as it is.
        """
        if self.is_meta or self.device != CPU or not self._is_narrow():
            return self
        new = self.map_state(lambda _, t: t.to(META, wide(t.dtype)))
        new.readers = {name: partial(self.read_wide, name) for name in self.state}
        graph.replace_arguments(new.graph, lambda a: META if isinstance(a, torch.device) else wide(a))
        graph.map_inputs(new.graph, lambda t: t.to(META, wide(t.dtype)))
        new.changed()
        return new

    def _is_narrow(self) -> bool:
        casts = (a for node in graph.calls(self.graph) for a in node.args)
        return any(wide(a) is not a for a in (*casts, *(t.dtype for t in self.state.values())))

    def read_wide(self, name: str) -> Tensor:
        """The value of a tensor, in float32 where it is a narrower float."""
        value = self.read(name)
        return value.to(wide(value.dtype))

    def on_device(self, device: torch.device) -> Program:
        """The same program on another device; what the graph makes is made there."""
        moved = self.map_state(lambda _, t: t.to(device))
        graph.replace_arguments(moved.graph, lambda a: device if isinstance(a, torch.device) else a)
        graph.map_inputs(moved.graph, lambda t: t.to(device))
        moved.changed()
        return moved

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, t) for n, t in self.state.items() if isinstance(t, torch.nn.Parameter))

    def symbols(self) -> list:
        """The sizes known at run time only, in the order of the inputs' dims: batch first, then length."""
        fakes = [node.meta["val"] for node in self.graph.find_nodes(op="placeholder")]
        sizes = [n.node.expr for fake in fakes for n in fake.shape if isinstance(n, torch.SymInt)]
        return list(dict.fromkeys(s for expr in sizes for s in sorted(expr.free_symbols, key=str)))

    def layers(self) -> dict[str, list[str]]:
        """The lists of repeated modules that the graph runs through: container path -> paths of its items in order."""
        found: dict[str, dict[str, None]] = {}
        for node in self.graph.nodes:
            for path in graph.module_paths(node):
                container, _, last = path.rpartition(".")
                if last.isdigit():
                    found.setdefault(container, {})[path] = None
        return {container: list(items) for container, items in found.items()}


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_IGNORED = {"use_cache", "return_dict"}  # a program keeps no cache and returns its model's own class


def _default(name: str, given: dict[str, Tensor], inputs: tuple[str, ...]) -> Tensor:
    first = given.get(inputs[0])
    if first is None or name not in ("attention_mask", "position_ids"):
        raise TypeError(f"input {name!r} is missing; this program takes {list(inputs)}")
    if name == "attention_mask":
        return torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
    return torch.arange(first.shape[1], device=first.device).expand(first.shape[:2])
