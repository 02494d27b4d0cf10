"""Prune the weights of a program block after block, each by what the pruned blocks before it give.

    block 1    all batches ──▶ Gram matrices ──▶ pruned weights ──▶ all batches again, through the pruned block
    block 2    what came out of it ──▶ ...

Of one block the Gram matrices are in memory, of every batch what is alive between two blocks (``segments.Kept``); where
a block has too many for that, as with many experts, the batches run through it several times. The matrices of a block
are pruned by the inputs that they have while it is dense, as in SparseGPT (arXiv 2301.00774). A weight that several
blocks use is pruned with the last of them, by its inputs in all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx

from fxcompress.axes import AxisMap
from fxcompress.batches import Batch
from fxcompress.errors import CompressError
from fxcompress.layout import Tokens
from fxcompress.observe import mask_of, said
from fxcompress.program import Program
from fxcompress.projections import Projection, Source, inputs_at
from fxcompress.segments import Kept, Segment, blocks_using
from fxcompress.streamed import Run
from fxcompress.weights.gram import Gram

Inputs: TypeAlias = "tuple[Source, ...]"  # of one matrix, in all calls that use it
GRAM_BYTES = 2 << 30  # of the matrices that are added up at a time
Calls: TypeAlias = "Mapping[fx.Node, Mapping[Source, Collection[Inputs]]]"  # what is seen there, and for what


@dataclass(frozen=True)
class Block:
    """A piece of the graph with the projections that are pruned with it.

    seen: calls at which the inputs of these are observed; ahead: of projections that a later block uses last.
    """

    piece: Segment
    due: tuple[Projection, ...]
    seen: Calls
    ahead: Calls

    def portions(self, most_bytes: int) -> list[set[Inputs]]:
        """The inputs that are seen, such that Gram matrices of each portion take so many bytes, or are one."""
        found: list[set[Inputs]] = [set()]
        used = 0
        sizes = {inputs: 4 * p.columns**2 for p in self.due for inputs in p.sources}
        for inputs, size in sizes.items():
            if found[-1] and used + size > most_bytes:
                found.append(set())
                used = 0
            found[-1].add(inputs)
            used += size
        return found


class Pruner(Protocol):
    """Makes new weights of Gram matrices."""

    def has(self, number: int) -> bool:
        """Does the program have the block's new weights already?"""

    def solve(self, due: Sequence[Projection], grams: Mapping[Inputs, Gram]) -> None:
        """Prune the matrices that read these inputs."""

    def finish(self, number: int, due: Sequence[Projection]) -> None:
        """Give the program the new weights of the block."""


class Sequential(Run):
    """Runs batches through a program whose weights are replaced on the way."""

    def __init__(self, program: Program, chosen: Sequence[Projection]) -> None:
        super().__init__(program.module, program.readers)
        self.program, self.tokens = program, Tokens.of(program.get(AxisMap))
        self.blocks = _blocks(program, chosen)
        self.grams: dict[Inputs, Gram] = {}
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._calls: Calls = {}
        self._mask: Tensor | None = None

    @torch.no_grad()
    def sweep(self, batches: Sequence[Batch], pruner: Pruner, advance: Callable[[], None]) -> None:
        """Run all batches through block after block. ``advance`` is called after each."""
        with Kept() as kept:
            for i, batch in enumerate(batches):
                kept.put(i, dict(zip(self.program.inputs, self.program.bind(**batch), strict=True)))
            for number, block in enumerate(self.blocks):
                if block.due and not pruner.has(number):
                    for portion in block.portions(GRAM_BYTES):
                        self._run_all(block.piece, _only(block.seen, portion), batches, kept.look)
                        pruner.solve(
                            block.due, {inputs: self.grams.pop(inputs) for inputs in portion & self.grams.keys()}
                        )
                    pruner.finish(number, block.due)
                for p in block.due:  # seen ahead, for a block that an earlier run has finished
                    for inputs in p.sources:
                        self.grams.pop(inputs, None)
                if block is not self.blocks[-1]:
                    self._run_all(block.piece, block.ahead, batches, kept.take, kept.put)
                advance()
        self.hold(())

    def _run_all(
        self,
        piece: Segment,
        calls: Calls,
        batches: Sequence[Batch],
        take: Callable[[int], dict[str, Any]],
        put: Callable[[int, dict[str, Any]], None] = lambda i, values: None,
    ) -> None:
        self.hold(piece.weights)
        self._calls = calls
        for i, batch in enumerate(batches):
            self._mask = mask_of(batch)
            env = self.run_part(piece.nodes, {self._nodes[name]: value for name, value in take(i).items()})
            put(i, {node.name: env[node] for node in piece.alive})

    def run_node(self, n: fx.Node) -> Any:
        if n in self._calls:
            self._observe(n, self._calls[n])
        return super().run_node(n)

    def _observe(self, call: fx.Node, wanted: Mapping[Source, Collection[Inputs]]) -> None:
        for source, x in inputs_at(call, wanted.keys(), self.value, self.tokens, self._mask):
            for inputs in wanted[source]:
                if inputs not in self.grams:
                    self.grams[inputs] = Gram(x.shape[-1], torch.float32, x.device)
                try:
                    self.grams[inputs].add(x)
                except CompressError as error:
                    raise CompressError(f"{error}, at {said(source.node)}") from error


def _blocks(program: Program, chosen: Sequence[Projection]) -> list[Block]:
    """All up to the last in which something is pruned."""
    pieces = blocks_using(program, {p.name for p in chosen})
    at = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    last = {p: max(at[call] for call in p.calls) for p in chosen}
    blocks = []
    for number, piece in enumerate(pieces):
        due = tuple(p for p in chosen if last[p] == number)
        later = [p for p in chosen if last[p] > number]
        blocks.append(Block(piece, due, _calls(due, set(piece.nodes)), _calls(later, set(piece.nodes))))
    return blocks[: max(last.values()) + 1]


def _calls(chosen: Sequence[Projection], inside: Collection[fx.Node]) -> Calls:
    """Where the inputs of these are seen inside: what several matrices read, at the first of their calls alone."""
    found: dict[fx.Node, dict[Source, list[Inputs]]] = {}
    known: set[tuple[Source, Inputs]] = set()
    for p in chosen:
        for i, call in enumerate(p.calls):
            new = [(inputs[i], inputs) for inputs in p.sources if (inputs[i], inputs) not in known]
            for source, inputs in new if call in inside else []:
                found.setdefault(call, {}).setdefault(source, []).append(inputs)
                known.add((source, inputs))
    return found


def _only(calls: Calls, portion: set[Inputs]) -> Calls:
    """The calls with the inputs of a portion alone."""
    found: dict[fx.Node, dict[Source, list[Inputs]]] = {}
    for call, wanted in calls.items():
        for source, several in wanted.items():
            mine = [inputs for inputs in several if inputs in portion]
            if mine:
                found.setdefault(call, {})[source] = mine
    return found
