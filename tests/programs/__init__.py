"""Random programs, and what must hold of each: tests of the algebra that share no code with it.

seeded(17)                    a program of 2 to 7 ingredients, from one seed
seeded(17, steps=(0, 3))      the same program without most of its steps: how a find is made small
drawn(draw)                   a program whose choices somebody else makes, as ``hypothesis`` does
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import fx

from tests.programs import algebra, blocks, movement, views
from tests.programs.builder import BATCH, Builder, Draw, Trial, dims, is_batch, sources

INGREDIENTS = (*algebra.INGREDIENTS, *movement.INGREDIENTS, *views.INGREDIENTS, *blocks.INGREDIENTS)

aten = torch.ops.aten


def seeded(seed: int, steps: Sequence[int] | None = None, symbolic: bool = False) -> Trial:
    """The program of a seed, or of some of its steps."""
    wanted = range(number_of_steps(seed)) if steps is None else steps
    return _program(sources(seed, list(wanted)), symbolic)


def number_of_steps(seed: int) -> int:
    return random.Random(f"{seed}/steps").randint(2, 7)


def drawn(draw: Draw, symbolic: bool = False) -> Trial:
    return _program([draw] * (draw(range(2, 8)) + 2), symbolic)


@torch.no_grad()
def _program(draws: Sequence[Draw], symbolic: bool) -> Trial:
    b = Builder(draws[0], symbolic)
    _begin(b)
    for draw in draws[1:-1]:
        b.draw = draw
        draw(INGREDIENTS)(b)
    b.draw = draws[-1]
    return b.finish(_outputs(b))


def _begin(b: Builder) -> None:
    """A sequence of vectors, rows of vectors or images; tokens beside them or alone."""
    b.noise.manual_seed(b.draw(range(1000)))
    kind = b.draw(("sequence", "sequence", "rows", "images", "tokens", "both"))
    shape = {"rows": (BATCH, 6), "images": (BATCH, 3, 4, 4)}.get(kind, (BATCH, 4, 6))
    if kind != "tokens":
        x = b.input("x", torch.randn(shape, generator=b.noise, dtype=torch.float64))
    if kind in ("tokens", "both"):
        tokens = b.input("tokens", torch.randint(12, (BATCH, 4), generator=b.noise))
        x = b.call(aten.embedding.default, b.weight(12, b.size()), tokens)
    b.add(b.linear(x, b.size()))


def _outputs(b: Builder) -> list[fx.Node]:
    """What no step has used: projected as a rule, so that its dims are not all dims of an output."""
    open_ends = [node for node in b.pool if not node.users]
    return [_projected(b, node) if b.draw((*[True] * 9, False)) else node for node in open_ends]


def _projected(b: Builder, x: fx.Node) -> fx.Node:
    """All dims but the batch contracted with a parameter: flattened, the last alone, or one by one."""
    shape = dims(x)
    kind = b.draw(("flattened", "flattened", "last", "weighted"))
    if kind == "flattened" and shape[0] == BATCH and not any(map(is_batch, shape[1:])):
        return b.linear(b.reshape(x, BATCH, math.prod(shape[1:])), 2)
    if kind == "last" and not is_batch(shape[-1]):
        return b.linear(x, 2)
    weight = b.weight(*(1 if is_batch(n) else n for n in shape))
    along = [i for i, n in enumerate(shape) if not is_batch(n)]
    return b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, x, weight), along) if along else x
