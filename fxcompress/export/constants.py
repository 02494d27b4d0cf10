"""Constants that a model's class derives from sizes: where two graphs of one class differ in anything but sizes.

    embeddings * sqrt(hidden_size)        a model whose width was cut multiplies by the old root, its class by the new

Logits that differ at equal shapes have their reason here, by name and with both values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph
from fxcompress.program import Program


def differing_constants(ours: Program, theirs: Program) -> list[str]:
    """Sentences about the constants of one program that the other has with another value; empty if none is found."""
    return list(dict.fromkeys([*_buffers(ours, theirs), *_arguments(ours, theirs)]))


def _buffers(ours: Program, theirs: Program) -> Iterator[str]:
    here, there = ours.state, theirs.state
    for name in here.keys() & there.keys():
        if isinstance(here[name], torch.nn.Parameter) or (there[name].is_meta and name not in theirs.readers):
            continue
        a, b = ours.read(name), theirs.read(name)
        if a.shape != b.shape or not torch.allclose(a.float(), b.float()):
            yield f"{name} is {_say(b)} there and {_say(a)} here"


def _arguments(ours: Program, theirs: Program) -> Iterator[str]:
    """Numbers in calls, where both graphs make the same calls in the same order."""
    pairs = list(zip(graph.calls(ours.graph), graph.calls(theirs.graph), strict=False))
    if any(a.target is not b.target for a, b in pairs):
        return
    for a, b in pairs:
        for x, y in zip(_numbers(a), _numbers(b), strict=False):
            if abs(x - y) > 1e-6 * abs(x):
                where = graph.module_path(a) or "the model"
                yield f"{where} has {y:.6g} in {a.target} there and {x:.6g} here"


def _numbers(node: fx.Node) -> list[float]:
    """Floats among the arguments: ints are sizes, which the shapes have shown."""
    found: list[float] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda x: found.append(x) if isinstance(x, float) else None)
    return found


def _say(value: Tensor) -> Any:
    return f"{value.item():.6g}" if value.numel() == 1 else f"a tensor {tuple(value.shape)}"
