"""Inputs and outputs of a program whose border was cut: values passed in are renumbered, outputs have fewer indices.

embedding.weight[0] kept 3 7 9:    token 7 of the original is token 1 of the result
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fxcompress.axes import AxisMap
from fxcompress.errors import CompressError
from fxcompress.keep import Keep, is_cut, kept_indices


class Border:
    """How the inputs and outputs of a program relate to those of its rewrite with some axes cut."""

    def __init__(self, axes: AxisMap, keep: Keep) -> None:
        self.axes, self.keep = axes, keep
        self.names = [node.name for node in axes.program.graph.find_nodes(op="placeholder")]

    def inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same inputs with every value that addresses a removed index moved to one that stays."""
        return [self._map(name, value, lambda kept, v: kept[v % len(kept)]) for name, value in self._named(inputs)]

    def renumbered(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """For the rewritten program: values that address kept indices, in the new numbering."""
        return [self._map(name, value, _positions) for name, value in self._named(inputs)]

    def batch(self, batch: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """Named inputs in the new numbering. Raises CompressError where they use what was removed."""
        out = {}
        for name, value in batch.items():
            out[name] = self._map(name, value, _positions)
            gone = value[out[name] < 0]
            if out[name] is not value and gone.numel():
                raise CompressError(f"the calibration has {name} {int(gone[0])}, which {what} removed; keep it")
        return out

    def outputs(self, outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """What the rewritten program should give: the kept indices of each dim of the outputs."""
        node = next(node for node in self.axes.program.graph.nodes if node.op == "output")
        return [
            None if value is None else self._cut(value, self.axes.dims[source])
            for value, source in zip(outputs, node.args[0], strict=True)
        ]

    def _named(self, inputs: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, inputs, strict=True))

    def _map(self, name: str, value: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        addresses = self.axes.inputs.get(name)
        dim = addresses.addressed[0] if addresses and addresses.addressed else ()
        if not is_cut(dim, self.keep):
            return value
        return function(kept_indices(dim, self.keep, self.axes.outer).to(value.device), value)

    def _cut(self, value: Tensor, dims: tuple) -> Tensor:
        for i, dim in enumerate(dims):
            if is_cut(dim, self.keep):
                index = kept_indices(dim, self.keep, self.axes.outer)
                value = value.index_select(i, index.to(value.device))
        return value


def _positions(kept: Tensor, values: Tensor) -> Tensor:
    """Where among the kept indices each value stands; -1 for one that is not among them."""
    last = max(int(kept.max()), int(values.max()) if values.numel() else 0)
    where = torch.full((last + 1,), -1, device=kept.device)
    where[kept] = torch.arange(len(kept), device=kept.device)
    return where[values]
