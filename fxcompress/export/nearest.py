"""The nearest sizes that stock transformers can hold, for a pass whose result it cannot.

    Mamba2ForCausalLM can hold 6 or 12 ssm heads in each layer, not 9        hidden · expand = heads · head_dim

How many indices of each dim stay follows from the count that a pass keeps, so that many counts are tried on shapes
alone and nothing is rewritten. The nearest below and above are then cut on ``meta`` and compared with what their config
builds, by how the sizes are divided; constants that a class derives from sizes show in logits only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from fxcompress.amount import Amount
from fxcompress.axes import AxisMap, Group
from fxcompress.errors import CompressError
from fxcompress.export.config import NotExpressible, Probe, Shapes
from fxcompress.export.form import find_form
from fxcompress.keep import kept_size
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.rewrite import rewrite
from fxcompress.token_fields import present_config

_TRIED = 64  # counts in each direction
_CUT = 2  # of those with fitting shapes that are compared


class CutsAxes(Protocol):
    """What is asked of a pass that cuts axes."""

    @property
    def scope(self) -> Any: ...
    @property
    def role(self) -> Any: ...
    @property
    def amount(self) -> Amount: ...
    def candidates(self, axes: AxisMap) -> list[Group]: ...
    def selected(self, program: Program) -> list[Group]: ...


def nearest(program: Program, p: CutsAxes) -> str:
    """A sentence: which sizes near the one that a pass asks for stock transformers can hold, or why there are none."""
    kind = program.origin.model_class.__name__
    if program.origin.config is None:
        return f"{kind} is a plain module: it has no config to describe the result"
    groups = p.selected(program)
    what = "residual channels" if p.role == "residual" else (p.role or "indice").replace("_", " ") + "s"
    if p.scope == "global":
        return f"{kind} has one size for all layers: scope='layer' with the same ratio gives every layer the same"
    left_out = [g for g in p.candidates(program.get(AxisMap)) if not g.pinned and g not in groups]
    if left_out:
        return f"{kind} has one size for all layers: layers= leaves out others, {left_out[0].key} among them"
    search = _Search(program, groups)
    first, asked = groups[0], p.amount.kept(groups[0].sizes, groups[0].key)
    rows = first.total // first.size
    if search.holds(asked):
        return f"{kind} can hold {asked * rows} {what}: it is not the sizes that stand against it"
    below = search.first(range(asked - 1, 0, -1))
    above = search.first(range(asked + 1, first.size + 1))
    found = [str(n * rows) for n in (below, above) if n is not None]
    if below is None and (above is None or above == first.size):
        return f"{kind} can hold no number of {what} but {first.total}: {search.why(asked)}"
    return f"{kind} can hold {' or '.join(found)} {what}, not {asked * rows}"


class _Search:
    """Tries counts of some groups on one model class, whose shapes are asked for once."""

    def __init__(self, program: Program, groups: list[Group]) -> None:
        self.program, self.groups = program, groups
        self.axes = program.get(AxisMap)
        kind: Any = program.origin.model_class
        self.config = type(program.origin.config).from_dict(present_config(program))
        self.probe = Probe.of_model(kind, self.config)
        with torch.device("meta"):
            self.stored = set(kind(self.config).state_dict())

    def first(self, counts: Iterable[int]) -> int | None:
        """The first of the counts that stock transformers can hold."""
        fitting = (n for i, n in enumerate(counts) if i < _TRIED and self._fits(n))
        for i, n in enumerate(fitting):
            if i == _CUT:
                break
            if self.holds(n):
                return n
        return None

    def holds(self, count: int) -> bool:
        """Is there a config, and does its model divide the sizes as the result does?"""
        if count == self.groups[0].size:
            return True
        if not self._fits(count):
            return False
        cut, step = self.program.on_device(torch.device("meta")), Step("nearest", self._keep(count))
        try:
            rewrite(cut, step)
            find_form(cut, [step])
        except (NotExpressible, CompressError):
            return False
        return True

    def why(self, count: int) -> str:
        """What stands against a count."""
        self.probe.forget()
        self._fits(count)
        return self.probe.explain()

    def _fits(self, count: int) -> bool:
        return next(self.probe.solve({}, self._target(count)), None) is not None

    def _counts(self, count: int) -> Iterator[tuple[Group, int]]:
        """The same part of every group; of groups of one size, the same count."""
        first = self.groups[0].size
        yield from ((g, max(1, round(count * g.size / first))) for g in self.groups)

    def _keep(self, count: int) -> dict[str, Tensor]:
        return {g.key: torch.arange(n).expand(*g.sizes[:-1], n) for g, n in self._counts(count) if n < g.size}

    def _target(self, count: int) -> Shapes:
        keep = {g.axis: torch.empty(n) for g, n in self._counts(count)}
        out: Shapes = {}
        for name, tensor in self.program.state.items():
            dims = self.axes.state.get(name)
            shape = tuple(tensor.shape) if dims is None else tuple(kept_size(dim, keep) for dim in dims)
            out |= {each: shape for each in self.program.names.get(name, (name,)) if each in self.stored}
        return out
