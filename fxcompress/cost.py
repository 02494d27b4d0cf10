"""What a program costs: parameters, bytes, operations per token, and the state that generation keeps.

Operations are counted for contractions, scans, convolutions and experts, from the sizes in their rules: a
multiply-add is two. ``prefill`` is per token of a sequence of ``LENGTH`` tokens (attention counts every pair of
tokens), ``decode`` is for one token after as many in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sympy
import torch
from torch import fx

from fxcompress import graph
from fxcompress.axes import AxisMap
from fxcompress.axis import size
from fxcompress.lowered import held
from fxcompress.program import Program
from fxcompress.rule import RULES, Rule

LENGTH = 2048
CONVOLUTION = torch.ops.fxcompress.causal_conv1d.default


@dataclass(frozen=True)
class Figures:
    """Costs of one program. Bytes are in the dtypes that the tensors have, states of scans in float32 at the least.

    Zeros count, also where a sparse op holds a matrix without them.
    """

    parameters: int
    weight_bytes: int
    prefill_flops_per_token: int
    decode_flops_per_token: int
    cache_bytes_per_token: int
    cache_bytes_per_sequence: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Cost:
    """Figures of a program, as an analysis."""

    def __init__(self, program: Program) -> None:
        self.axes = program.get(AxisMap)
        sizes = [(p.numel(), p.element_size()) for _, p in program.parameters()] + held(program)
        symbols = program.symbols()
        per_token, per_sequence = self._cache(symbols)
        length = LENGTH if len(symbols) > 1 else 1  # without a length, one sample is one token
        self.figures = Figures(
            parameters=sum(count for count, _ in sizes),
            weight_bytes=sum(count * width for count, width in sizes),
            prefill_flops_per_token=round(self._flops(symbols, length, None) / length),
            decode_flops_per_token=round(self._flops(symbols, 1, LENGTH)),
            cache_bytes_per_token=per_token,
            cache_bytes_per_sequence=per_sequence,
        )

    def _flops(self, symbols: list, length: int, context: int | None) -> float:
        """Operations of one sequence of ``length`` tokens, with ``context`` tokens to attend to."""
        total = 0.0
        for _, rule, letters in self.costed():
            if rule.flops is not None:
                sizes = _numbers(letters, symbols, length)
                if context is not None and rule.context is not None and rule.context in sizes:
                    sizes[rule.context] = context
                total += float(rule.flops(sizes))
        return total

    def _cache(self, symbols: list) -> tuple[int, int]:
        per_token, per_sequence = 0, 0
        for node, rule, letters in self.costed():
            if rule.cache is not None:
                token, sequence = rule.cache(_numbers(letters, symbols, 1))
                per_token += int(token) * cache_dtype(node).itemsize
                per_sequence += int(sequence) * state_dtype(node).itemsize
        return per_token, per_sequence

    def costed(self) -> list[tuple[fx.Node, Rule, Mapping[str, Any]]]:
        """The calls whose rules may say what they cost, with their dims by letter."""
        return [(node, RULES[node.target], letters) for node, letters in self.axes.letters.items() if letters]


def cache_dtype(node: fx.Node) -> torch.dtype:
    """Of what generation keeps for every token, and of what a convolution keeps of the last ones: as computed."""
    return next(graph.tensors(node.meta["val"])).dtype


def state_dtype(node: fx.Node) -> torch.dtype:
    """Of what generation keeps for a sequence: scans return their states in float32 at the least."""
    dtype = cache_dtype(node)
    return dtype if node.target is CONVOLUTION else torch.promote_types(dtype, torch.float32)


def _numbers(letters: Mapping[str, Any], symbols: list, length: int) -> dict[str, int]:
    """Sizes by letter for a batch of one."""
    values = dict(zip(symbols, [1, *[length] * len(symbols)], strict=False))
    return {k: int(sympy.sympify(size(dim)).subs(values)) for k, dim in letters.items()}
