"""What calibration found: sums for each thing that was watched, kept for later runs, cut along with the program.

Statistics are of the original program and serve all passes (single-shot importance: Minitron, arXiv 2407.14679,
section 2.2). When a pass cuts an axis, the same indices go out of the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from fxcompress.axes import AxisMap
from fxcompress.axis import Dim, factors, leaves, size
from fxcompress.errors import CompressError
from fxcompress.keep import Keep, is_cut, select
from fxcompress.sums import Sums


@dataclass(frozen=True, order=True)
class Watch:
    """What is added up while batches run: a kind of sums, the nodes whose values it takes, and the dim it keeps.

    kind: of ``fxcompress.sums.KINDS``; "taylor", sums of value times gradient; "skip", of outputs without the modules
    that ``nodes`` then names. block: so many consecutive indices are taken together, by their L2 norm at every token.
    size: of what is kept where no dim says it.
    """

    kind: str
    nodes: tuple[str, ...]
    dim: int = -1
    block: int = 1
    size: int = 0

    def kept(self, axes: AxisMap, node: fx.Node) -> Dim:
        """The dim that the sums run over."""
        return without_block(axes.dims[node][self.dim], self.block)


class Statistics(Mapping[Watch, Sums]):
    """Sums by what was watched."""

    def __init__(self, sums: Mapping[Watch, Sums] | None = None) -> None:
        self._sums = dict(sums or {})

    def __getitem__(self, watch: Watch) -> Sums:
        return self._sums[watch]

    def __iter__(self) -> Iterator[Watch]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def missing(self, watches: Iterable[Watch]) -> list[Watch]:
        return [watch for watch in dict.fromkeys(watches) if watch not in self._sums]

    def __or__(self, other: Mapping[Watch, Sums]) -> Statistics:
        return Statistics({**self._sums, **other})

    def cut(self, axes: AxisMap, keep: Keep) -> Statistics:
        """The statistics of the program that is left: what cannot be cut is left out, and watched anew if asked for."""
        nodes = {node.name: node for node in axes.dims}
        out = {}
        for watch, sums in self._sums.items():
            after = _cut(watch, sums, axes, nodes, keep)
            if after is not None:
                out[after[0]] = after[1]
        return Statistics(out)


def _cut(
    watch: Watch, sums: Sums, axes: AxisMap, nodes: Mapping[str, fx.Node], keep: Keep
) -> tuple[Watch, Sums] | None:
    if watch.kind in ("cosine", "skip"):
        return watch, sums
    node = nodes.get(watch.nodes[-1])
    if node is None:
        return None
    if watch.kind == "routed":
        return None if any(is_cut(dim, keep) for dim in axes.dims[node]) else (watch, sums)
    inside = set(leaves(axes.dims[node][watch.dim])) - set(leaves(watch.kept(axes, node)))
    if inside & keep.keys():  # the norms are of more than what is left
        return None
    dim = watch.kept(axes, node)
    if not is_cut(dim, keep):
        return watch, sums
    if any(outer not in leaves(dim) for axis in leaves(dim) if axis in keep for outer in _differs(axes, keep, axis)):
        return None
    return watch, {name: _select(value, dim, keep, axes) for name, value in sums.items()}


def _differs(axes: AxisMap, keep: Keep, axis: object) -> tuple:
    """The axes along which the choice on an axis differs."""
    return axes.outer[axis] if keep[axis].dim() > 1 else ()  # type: ignore[index]


def _select(value: Tensor, dim: Dim, keep: Keep, axes: AxisMap) -> Tensor:
    return select(value, (dim,), keep, axes.outer) if value.dim() else value


def without_block(dim: Dim, block: int) -> Dim:
    """The dim without its innermost factors, which have so many indices together."""
    outer = list(factors(dim))
    while block > 1 and outer:
        inner = outer.pop()
        if not isinstance(inner.size, int) or block % inner.size:
            raise CompressError(f"a dim of size {size(dim)} has no innermost block of {block}")
        block //= inner.size
    return tuple(outer)
