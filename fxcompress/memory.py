"""The bytes that a model takes where it is served: weights, KV cache, convolution and recurrent states.

    bytes = weights + batch x (context x cache + convolution + state)

The cache grows with the context, the states do not. Each part may be stored in a type of its own, as a server would
have it: 0.5 bytes a weight in FP4, 1 byte a key in FP8. As it is, a part has the dtype that it has in the graph, and
recurrent states at least float32, in which scans return them. This is how the 47B of Nemotron-H fits into 31.7 GiB
with a million tokens (arXiv 2504.03624, MiniPuzzle).

What a run needs besides is not counted: activations, and what kernels and allocators keep for themselves. A cache is
counted as the attention op reads it, for every token: windows and latent keys make it smaller where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from fxcompress.axes import AxisMap
from fxcompress.axis import Axis, Dims, Size
from fxcompress.bounded import quoted
from fxcompress.cost import CONVOLUTION, Cost, cache_dtype, state_dtype
from fxcompress.errors import CompressError
from fxcompress.keep import size_with
from fxcompress.program import Program
from fxcompress.tables import tables

BITS = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "fp8": 8,
    "int8": 8,
    "fp4": 4,
    "int4": 4,
}
_MOST_BITS = 64
_Counts = dict[torch.dtype, Any]


@dataclass(frozen=True)
class Precision:
    """Bits of an element of each part; None where it is stored as the model has it.

    Scales count as part of an element: four bits with a scale of 16 bits for every 32 weights are 4.5.
    """

    weights: float | None = None
    cache: float | None = None
    convolution: float | None = None
    state: float | None = None

    def __post_init__(self) -> None:
        for part in fields(self):
            bits = getattr(self, part.name)
            if bits is not None and not 0 < bits <= _MOST_BITS:
                raise CompressError(f"{part.name}={bits} is no number of bits between 0 and {_MOST_BITS}")


AS_IT_IS = Precision()


@dataclass(frozen=True)
class Memory:
    """Bytes of each part."""

    weights: int
    cache: int
    convolution: int
    state: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.convolution + self.state


@dataclass(frozen=True)
class Footprint:
    """How many elements of each dtype a program holds: weights, each once; cache for a token; states for a sequence.

    vocabulary: of the weights, those of embedding and head.
    Counts are integers, or whatever ``count`` of ``of`` makes of sizes: symbols, arrays of integers.
    """

    weights: Mapping[torch.dtype, Any]
    cache: Mapping[torch.dtype, Any]
    convolution: Mapping[torch.dtype, Any]
    state: Mapping[torch.dtype, Any]
    vocabulary: Mapping[torch.dtype, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        program: Program,
        count: Callable[[Axis], Size] = lambda axis: axis.size,
        alive: Collection[fx.Node] | None = None,
    ) -> Footprint:
        """Of a program; with other sizes of its free axes, and of a part of its graph alone, where these are given."""
        nodes = set(program.graph.nodes if alive is None else alive)
        held = {node.target for node in nodes if node.op == "get_attr"} | set(program.unused)
        weights, vocabulary = (_weights(program, count, names) for names in (held, held & tables(program)))
        cache: _Counts = {}
        convolution: _Counts = {}
        state: _Counts = {}
        for node, rule, letters in program.get(Cost).costed():
            if rule.cache is not None and node in nodes:
                token, sequence = rule.cache({letter: size_with(dim, count) for letter, dim in letters.items()})
                _add(cache, cache_dtype(node), token)
                _add(convolution if node.target is CONVOLUTION else state, state_dtype(node), sequence)
        return cls(weights, cache, convolution, state, vocabulary)

    @property
    def parameters(self) -> Any:
        return sum(self.weights.values())

    @property
    def non_embedding(self) -> Any:
        """Parameters without those of embedding and head."""
        return self.parameters - sum(self.vocabulary.values())

    def map(self, function: Callable[[Any], Any]) -> Footprint:
        """The same with every count as the function of it."""
        parts = {f.name: {k: function(n) for k, n in getattr(self, f.name).items()} for f in fields(self)}
        return replace(self, **parts)

    def memory(self, batch: int = 1, context: int = 0, precision: Precision = AS_IT_IS) -> Memory:
        """Bytes for ``batch`` sequences of ``context`` tokens each."""
        tokens = {dtype: batch * context * n for dtype, n in self.cache.items()}
        convolution = {dtype: batch * n for dtype, n in self.convolution.items()}
        state = {dtype: batch * n for dtype, n in self.state.items()}
        return Memory(
            _bytes(self.weights, precision.weights),
            _bytes(tokens, precision.cache),
            _bytes(convolution, precision.convolution),
            _bytes(state, precision.state),
        )


def memory(program: Program, batch: int = 1, context: int = 0, precision: Precision = AS_IT_IS) -> Memory:
    """Bytes that a program takes with ``batch`` sequences of ``context`` tokens each."""
    return Footprint.of(program).memory(batch, context, precision)


def read_bits(text: str) -> float:
    """``fp8`` or a number of bits. Raises CompressError for anything else."""
    try:
        bits = float(BITS.get(text, text))
    except ValueError as error:
        raise CompressError(f"{quoted(text)} is neither a number of bits nor one of {', '.join(BITS)}") from error
    if not 0 < bits <= _MOST_BITS:
        raise CompressError(f"{quoted(text)} is no number of bits between 0 and {_MOST_BITS}")
    return bits


def _weights(program: Program, count: Callable[[Axis], Size], names: Collection[Any]) -> _Counts:
    axes, out = program.get(AxisMap), _Counts()
    for name, parameter in program.parameters():
        if name in names:
            dims = axes.state.get(name)
            _add(out, parameter.dtype, parameter.numel() if dims is None else _elements(dims, count))
    return out


def _elements(dims: Dims, count: Callable[[Axis], Size]) -> Size:
    """Elements of a tensor: the size of a product of its dims."""
    return size_with(tuple(axis for dim in dims for axis in dim), count)


def _add(counts: _Counts, dtype: torch.dtype, more: Any) -> None:
    if not isinstance(more, int) or more:
        counts[dtype] = counts.get(dtype, 0) + more


def _bytes(counts: Mapping[torch.dtype, Any], bits: float | None) -> Any:
    """Bytes of so many elements, rounded up to whole ones for each dtype."""
    total: Any = 0
    for dtype, n in counts.items():
        each = Fraction(8 * dtype.itemsize if bits is None else bits).limit_denominator(1000)
        total = total - (-n * each.numerator // (8 * each.denominator))
    return total
