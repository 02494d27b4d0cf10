"""The criteria that have names: importance from weights, from activations, from gradients, from routing.

magnitude     L2 norm of the weights of each index, over all slots
activation    Minitron (arXiv 2407.14679, section 2.2); heads and channels: Minitron-SSM (arXiv 2504.11409, section 3)
fluctuation   FLAP (arXiv 2312.11983, section 3): the variance of what a weight column reads, times its squared norm
taylor        first order: what the loss would change by
routing       of experts, how much they are used
random        a baseline
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from fxcompress import sums
from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Dim, factors, leaves
from fxcompress.errors import CompressError
from fxcompress.norms import magnitude, sums_of_squares
from fxcompress.program import Program
from fxcompress.rule import Reduction
from fxcompress.score import Criterion, by_index
from fxcompress.sites import Site, found_at
from fxcompress.statistics import Statistics, Watch, without_block

fxc = torch.ops.fxcompress


@dataclass(frozen=True, kw_only=True)
class Magnitude(Criterion):
    """L2 norm of each index over all slots of the group."""

    name: ClassVar[str] = "magnitude"

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        return magnitude(program, group)


@dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Uniform in [0, 1), by the seed of the pass."""

    name: ClassVar[str] = "random"
    comparable: ClassVar[bool] = True

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        return torch.rand(group.sizes, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Activation(Criterion):
    """How large the activations of each index are; summed over the places where they are observed.

    sequence: what is made of the tokens of a sequence, the mean of absolute values, the L2 norm or the variance. The
    norm lost least on a model of 135M (``docs/results.md``), Minitron takes the mean. batch: what is made of the
    sequences. at: see ``fxcompress.sites``. join: where an index has several channels, as a head has, their L2 norm is
    taken of what comes out ("channel": Minitron-SSM) or at every token ("token": Minitron).
    """

    name: ClassVar[str] = "activation"
    sequence: Literal["mean", "l2", "variance"] = "l2"
    batch: Literal["mean", "l2", "variance"] = "l2"
    at: Literal["input", "output", "x", "z"] = "input"
    join: Literal["channel", "token"] = "channel"

    def watches(self, axes: AxisMap, group: Group) -> list[Watch]:
        return [Watch(self.sequence, (n.name,), d, self._block(axes, group, n, d)) for n, d in self._sites(axes, group)]

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        axes = program.get(AxisMap)
        total = torch.zeros(group.sizes, dtype=torch.float64)
        for (node, dim), watch in zip(self._sites(axes, group), self.watches(axes, group), strict=True):
            values = sums.aggregated(statistics[watch], self.batch)
            kept = without_block(axes.dims[node][dim], watch.block)
            total += by_index(values.square(), (kept,), axes, group).sqrt()
        return total

    def _sites(self, axes: AxisMap, group: Group) -> list[Site]:
        return found_at(self.at, axes, group)

    def _block(self, axes: AxisMap, group: Group, node: fx.Node, dim: int) -> int:
        """How many channels an index has, side by side; 1 where they are told apart."""
        own = factors(axes.dims[node][dim])
        if self.join == "channel":
            return 1
        if group.axis not in own:
            raise CompressError(f"{group.key}: join=token needs the channels of an index side by side in {node.name}")
        inner = own[own.index(group.axis) + 1 :]
        return int(torch.Size(axis.size for axis in inner).numel())  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Fluctuation(Criterion):
    """The variance over all tokens of what each index gives, times the squared norm of the weights that read it."""

    name: ClassVar[str] = "fluctuation"

    def watches(self, axes: AxisMap, group: Group) -> list[Watch]:
        return [Watch("tokens", (node.name,), dim) for node, dim, _, _ in self._read(axes, group)]

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        axes = program.get(AxisMap)
        total = torch.zeros(group.sizes, dtype=torch.float64)
        for node, dim, weight, column in self._read(axes, group):
            variance = sums.aggregated(statistics[Watch("tokens", (node.name,), dim)], "variance")
            norms = sums_of_squares(program.read(weight), [column]).flatten()
            total += by_index(variance * norms, (axes.dims[node][dim],), axes, group)
        return total

    def _read(self, axes: AxisMap, group: Group) -> list[tuple[fx.Node, int, str, int]]:
        """Activations with the weights whose columns read them: (value, dim, weight, its dim)."""
        sites, found = set(found_at("input", axes, group)), []
        for reductions in axes.reductions.values():
            of_weights = [r for r in reductions if r.operand.op == "get_attr" and group.axis in leaves(_dim(axes, r))]
            for r in reductions:
                for w in of_weights if (r.operand, r.dim) in sites else ():
                    if _dim(axes, w) and factors(_dim(axes, w)) == factors(_dim(axes, r)):
                        found.append((r.operand, r.dim, str(w.operand.target), w.dim))
        if not found:
            raise CompressError(f"{group.key}: no weight reads this axis of an activation; score it by 'magnitude'")
        return found


@dataclass(frozen=True, kw_only=True)
class Taylor(Criterion):
    """First order: how much the loss of a sequence would change were the index zero where projections read it.

    batch: the mean over sequences of the absolute change, or its root mean square. Takes the whole model in memory.
    """

    name: ClassVar[str] = "taylor"
    comparable: ClassVar[bool] = True
    batch: Literal["mean", "l2"] = "l2"

    def watches(self, axes: AxisMap, group: Group) -> list[Watch]:
        return [Watch("taylor", (node.name,), dim) for node, dim in found_at("input", axes, group)]

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        axes = program.get(AxisMap)
        total = torch.zeros(group.sizes, dtype=torch.float64)
        for watch, (node, dim) in zip(self.watches(axes, group), found_at("input", axes, group), strict=True):
            values = sums.aggregated(statistics[watch], self.batch)
            total += by_index(values, (axes.dims[node][dim],), axes, group)
        return total


@dataclass(frozen=True, kw_only=True)
class Routing(Criterion):
    """Of experts: the mean over tokens of the weight with which they are taken, zero where they are not.

    How often times how much: the factors of REAP (arXiv 2510.13999, section 3) that the router gives.
    """

    name: ClassVar[str] = "routing"
    comparable: ClassVar[bool] = True

    def watches(self, axes: AxisMap, group: Group) -> list[Watch]:
        return [watch for watch, _ in self._routed(axes, group)]

    def score(self, program: Program, group: Group, statistics: Statistics, seed: int = 0) -> Tensor:
        axes = program.get(AxisMap)
        found = self._routed(axes, group)
        return sum(
            (by_index(sums.aggregated(statistics[w], "mean"), (dim,), axes, group) for w, dim in found), torch.zeros(())
        )

    def _routed(self, axes: AxisMap, group: Group) -> list[tuple[Watch, Any]]:
        found = []
        for node in axes.reductions:
            if node.target is fxc.experts.default:
                _, index, weight, up, *_ = node.args
                dim = axes.dims[up][0]
                if group.axis in leaves(dim):
                    size = up.meta["val"].shape[0]
                    found.append((Watch("routed", (index.name, weight.name), -1, size=size), dim))
        if not found:
            raise CompressError(f"{group.key}: no router chooses among these; 'routing' scores experts")
        return found


def _dim(axes: AxisMap, reduction: Reduction) -> Dim:
    return axes.dims[reduction.operand][reduction.dim]
