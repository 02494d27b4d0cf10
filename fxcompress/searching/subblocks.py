"""The attention, the feed-forward network and the SSM of every layer: what a search by layers leaves out or cuts.

A layer of a Transformer has two of them, a layer of a hybrid is often one alone. Their kinds are read off the ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from fxcompress import graph
from fxcompress.axes import AxisMap
from fxcompress.axis import Axis
from fxcompress.errors import CompressError
from fxcompress.memory import Footprint
from fxcompress.passes import RemoveLayers
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.searching.depth import alive, stack
from fxcompress.statistics import Statistics

Kind: TypeAlias = Literal["attention", "ffn", "ssm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Subblock:
    """One part of a layer that can be left out. ``path``: of its module, the layer's own where it is nothing else."""

    kind: Kind
    layer: str
    path: str


def subblocks(program: Program) -> list[Subblock]:
    """All of a program, in the order in which they run. Raises CompressError where there are none."""
    layers, place = stack(program), _places(program)
    found = [_of(layers, kind, path) for kind in KINDS for path in _removable(program, kind)]
    if not found:
        raise CompressError("the model has no layers whose attention, FFN or SSM could be left out")
    return sorted(found, key=lambda one: place[one.path])


def removal(gone: Iterable[Subblock]) -> list[Pass]:
    """The passes that leave these out, one for each kind."""
    gone = list(gone)
    layers = {kind: tuple(one.layer for one in gone if one.kind == kind) for kind in KINDS}
    return [RemoveLayers(layers=paths, part=kind) for kind, paths in layers.items() if paths]


@dataclass(frozen=True)
class Decisions:
    """What passes decide on one program by its statistics; each decides once."""

    program: Program
    statistics: Statistics
    _made: dict[Pass, Step] = field(default_factory=dict, repr=False)

    def together(self, passes: Iterable[Pass]) -> Step:
        """The decisions of passes that do not touch each other's modules, as one step."""
        steps = [self._of(p) for p in passes]
        keep = {key: index for step in steps for key, index in step.keep.items()}
        return Step("together", keep, tuple(path for step in steps for path in step.remove))

    def _of(self, p: Pass) -> Step:
        if p not in self._made:
            self._made[p], _ = p.decide(self.program, self.statistics)
        return self._made[p]


def footprint(program: Program, step: Step) -> Footprint:
    """Of what a step would leave, from sizes alone: to the element what the rewritten program has."""
    axes = program.get(AxisMap)
    keep: dict[Axis, int] = {axes[key].axis: index.shape[-1] for key, index in step.keep.items()}
    return Footprint.of(program, lambda axis: keep.get(axis, axis.size), alive(program, step.remove))


def _of(layers: Sequence[str], kind: Kind, path: str) -> Subblock:
    layer = next(layer for layer in layers if path == layer or path.startswith(layer + "."))
    return Subblock(kind, layer, path)


def _removable(program: Program, kind: Kind) -> list[str]:
    try:
        watches = RemoveLayers(count=1, part=kind, score="hidden").watches(program)
    except CompressError:  # the model has no part of this kind
        return []
    return [watch.nodes[0] for watch in watches]


def _places(program: Program) -> dict[str, int]:
    """Where each module begins in the graph."""
    places: dict[str, int] = {}
    for i, node in enumerate(program.graph.nodes):
        for path in graph.module_paths(node):
            places.setdefault(path, i)
    return places
