"""A graph in pieces, for models whose weights are not in memory: all batches run through a piece before the next.

    read the weights of layers 0-3     batch 0, batch 1, ... through them     keep each batch's residual stream
    read the weights of layers 4-7     ...

A piece ends where only the residual stream and constants are alive: values that no weight has touched, such as masks
and rotary tables. So each weight is read once for all batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from fxcompress.program import Program

WEIGHT_BYTES = 1 << 30  # weights that are held while batches run through a piece
ACTIVATION_BYTES = 4 << 30  # activations that are kept in memory; those beyond are on disk


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes, and what of their values and earlier ones is read after them."""

    nodes: tuple[fx.Node, ...]
    alive: tuple[fx.Node, ...]

    @property
    def weights(self) -> list[str]:
        """The tensors that its calls use."""
        used = {a.target for n in self.nodes for a in n.all_input_nodes if a.op == "get_attr"}
        return sorted(map(str, used))


def segments(program: Program, weight_bytes: int = WEIGHT_BYTES) -> list[Segment]:
    """The graph in as few pieces as can be, each with weights of at most so many bytes where its layers allow it."""
    order = [n for n in program.graph.nodes if n.op != "output"]
    cuts = [*_cuts(program, order), (len(order), ())]
    sizes = {name: t.numel() * t.element_size() for name, t in program.state.items()}
    out: list[Segment] = []
    begin, end, alive = 0, 0, ()
    for position, after in cuts:
        longer = Segment(tuple(order[begin:position]), after)
        if end > begin and sum(sizes[name] for name in longer.weights) > weight_bytes:
            out.append(Segment(tuple(order[begin:end]), alive))
            begin = end
        end, alive = position, after
    return [*out, Segment(tuple(order[begin:end]), alive)]


def blocks_using(program: Program, names: Collection[str]) -> list[Segment]:
    """The graph in pieces that each end as soon as one of these tensors has been used, and can end."""
    order = [n for n in program.graph.nodes if n.op != "output"]
    out: list[Segment] = []
    begin = 0
    for position, after in _cuts(program, order):
        piece = Segment(tuple(order[begin:position]), after)
        if not set(names).isdisjoint(piece.weights):
            out.append(piece)
            begin = position
    return [*out, Segment(tuple(order[begin:]), ())]


def _cuts(program: Program, order: Sequence[fx.Node]) -> Iterator[tuple[int, tuple[fx.Node, ...]]]:
    """Positions between nodes at which one value that weights have touched is alive, with all that is alive there.

    What lives for half of the graph counts as a constant: some models give the embeddings to every layer besides.
    """
    weights = {name for name, _ in program.parameters()}
    place = {node: i for i, node in enumerate(order)}
    last = {node: max((place.get(user, len(order)) for user in node.users), default=-1) for node in order}
    touched: set[fx.Node] = set()
    alive: dict[fx.Node, None] = {}
    for i, node in enumerate(order):
        if node.target in weights or touched & set(node.all_input_nodes):
            touched.add(node)
        if node.op != "get_attr":
            alive[node] = None
        alive = {n: None for n in alive if last[n] > i}
        stream = [n for n in alive if n in touched and last[n] - place[n] < len(order) / 2]
        if len(stream) == 1 and all(isinstance(n.meta.get("val"), Tensor | torch.SymInt) for n in alive):
            yield i + 1, tuple(alive)


class Kept:
    """Values of every batch between two pieces: in memory up to a limit, the rest in files of a temporary folder."""

    def __init__(self, limit: int = ACTIVATION_BYTES) -> None:
        self.limit, self.used = limit, 0
        self._memory: dict[int, dict[str, Any]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="fxcompress-")

    def put(self, batch: int, values: dict[str, Any]) -> None:
        """Keep the values of a batch: tensors, and sizes, which are numbers."""
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if self.used + _bytes(tensors) <= self.limit:
            self.used += _bytes(tensors)
            self._memory[batch] = values
        else:
            whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
            save_file(whole, self._file(batch))
            self._memory[batch] = {name: value for name, value in values.items() if name not in tensors}

    def look(self, batch: int) -> dict[str, Any]:
        """The values of a batch, which are kept."""
        values = dict(self._memory[batch])
        return values | load_file(self._file(batch)) if self._file(batch).is_file() else values

    def take(self, batch: int) -> dict[str, Any]:
        values = self._memory.pop(batch)
        if self._file(batch).is_file():
            values |= {name: value.clone() for name, value in load_file(self._file(batch)).items()}
            self._file(batch).unlink()
        else:
            self.used -= _bytes(values)
        return values

    def _file(self, batch: int) -> Path:
        return Path(self._folder.name) / f"{batch}.safetensors"

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()


def _bytes(values: dict[str, Any]) -> int:
    return sum(v.numel() * v.element_size() for v in values.values() if isinstance(v, Tensor))
