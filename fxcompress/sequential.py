"""Prune the weights of a program block after block, each by what the pruned blocks before it give.

    block 1    all batches ──▶ Gram matrices ──▶ pruned weights ──▶ all batches again, through the pruned block
    block 2    what came out of it ──▶ ...

Of one block the Gram matrices are in memory, of every batch what is alive between two blocks (``segments.Kept``). The
matrices of a block are pruned by the inputs that they have while it is dense, as in SparseGPT (arXiv 2301.00774). A
weight that several blocks use is pruned with the last of them, by its inputs in all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
    def sweep(
        self, batches: Sequence[Batch], prune: Callable[[int, Block], None], done: Callable[[int], bool], advance: Any
    ) -> None:
        """Run all batches through block after block.

        prune: is called with the number of a block and has to give the program its new weights, by ``grams``. done: has
        it them already? advance: is called after each block.
        """
        with Kept() as kept:
            for i, batch in enumerate(batches):
                kept.put(i, dict(zip(self.program.inputs, self.program.bind(**batch), strict=True)))
            for number, block in enumerate(self.blocks):
                if block.due and not done(number):
                    self._run_all(block.piece, block.seen, batches, kept.look)
                    prune(number, block)
                self.grams = {inputs: gram for inputs, gram in self.grams.items() if inputs not in _of(block.seen)}
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
                gram = self.grams.setdefault(inputs, Gram(x.shape[-1], torch.float32, x.device))
                try:
                    gram.add(x)
                except CompressError as error:
                    raise CompressError(f"{error}, at {said(source.node)}") from error


def _blocks(program: Program, chosen: Sequence[Projection]) -> list[Block]:
    pieces = blocks_using(program, {p.name for p in chosen})
    at = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    last = {p: max(at[call] for call in p.calls) for p in chosen}
    blocks = []
    for number, piece in enumerate(pieces):
        due = tuple(p for p in chosen if last[p] == number)
        later = [p for p in chosen if last[p] > number]
        blocks.append(Block(piece, due, _calls(due, set(piece.nodes)), _calls(later, set(piece.nodes))))
    return blocks


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


def _of(calls: Calls) -> Iterator[Inputs]:
    return (inputs for wanted in calls.values() for several in wanted.values() for inputs in several)
