"""How much to remove from each layer by how many of its weights stand out: OWL (arXiv 2310.05175), on a program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.projections import EXPERTS, Projection, layer_of
from fxcompress.statistics import Statistics, Watch
from fxcompress.weights.owl import allocate, outlier_ratio


def outlier_watches(chosen: Sequence[Projection]) -> list[Watch]:
    """The mean squares of what every matrix is multiplied with. Raises CompressError for experts, which hide theirs."""
    hidden = next((p.name for p in chosen if any(call.target is EXPERTS for call in p.calls)), None)
    if hidden is not None:
        raise CompressError(f"allocation='owl': what {hidden} is multiplied with is inside the experts: skip them")
    return list(dict.fromkeys(_watch(p, i) for p in chosen for i in range(len(p.calls))))


def owl(program: Program, chosen: Sequence[Projection], statistics: Statistics, sparsity: float) -> dict[str, float]:
    """The sparsity of each parameter: one for all matrices of a layer, of this mean over all weights together."""
    layers: dict[str, list[Projection]] = {}
    for p in chosen:
        layers.setdefault(layer_of(program, p.name), []).append(p)
    outliers = [outlier_ratio([_scores(program, p, statistics) for p in several]) for several in layers.values()]
    sizes = [sum(program.state[p.name].numel() for p in several) for several in layers.values()]
    found = allocate(outliers, sizes, sparsity)
    return {p.name: part for several, part in zip(layers.values(), found, strict=True) for p in several}


def _watch(p: Projection, i: int) -> Watch:
    source = p.sources[0][i]
    return Watch("tokens", (source.node.name,), source.dim)


def _scores(program: Program, p: Projection, statistics: Statistics) -> Tensor:
    """|w| times the root of the mean square of its input (Wanda, arXiv 2306.11695)."""
    sums = [statistics[_watch(p, i)] for i in range(len(p.calls))]
    squares, count = (torch.stack([s[key] for s in sums]).sum(0) for key in ("squares", "count"))
    return p.matrices(program.read(p.name))[0].abs().double() * (squares / count).sqrt().to(program.device)
