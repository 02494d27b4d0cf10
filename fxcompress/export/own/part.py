"""The config and the sizes with which one module has the shapes that are wanted, asked of its own class.

Sizes within a module follow from its config; where it meets the residual stream, from the integers that its projections
are constructed with. Several configs can have the same shapes, and some fields move none (how many heads a width is
divided into), so candidates come in the order of how many of the program's axes they name; logits decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from fxcompress.errors import CompressError
from fxcompress.export.config import Probe, Shapes, Wanted
from fxcompress.export.own.model import construct
from fxcompress.export.own.record import Call, Calls, recording

_SOLUTIONS = 8  # with other shapes within, for each way of asking


@dataclass(frozen=True)
class Change:
    """Of one module: fields of its config, integers it is given, and those of modules in it by their path there."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    within: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass
class Part:
    """A module, how it was constructed, and the shapes that its tensors are to have; None where the outside says."""

    path: str
    call: Call
    wanted: Wanted
    start: Mapping[str, Any]  # fields that differ for the whole model

    def candidates(self, inner: Wanted, axes: Sequence[int]) -> list[Change]:
        """Changes that give the wanted shapes, the likeliest first. ``inner``: without what meets the stream."""
        found: list[Change] = []
        for wanted in (self.wanted, inner):
            probe = self._probe()
            for changes in itertools.islice(probe.solve({}, wanted), _SOLUTIONS):
                for variant in [changes, *self._variants(probe, changes)]:
                    change = self._with_sizes_within(self._split(variant))
                    if change is not None and change not in found:
                        found.append(change)
            if found:
                break
        different: dict[tuple, Change] = {}
        for change in found:
            different.setdefault(self._numbers(change), change)
        return sorted(different.values(), key=lambda change: -self._named(change, axes))

    def _values(self) -> dict[str, Any]:
        config = self.call.config
        fields = {} if config is None else config.__dict__
        numbers = {k: v for k, v in fields.items() if type(v) in (int, float) and not k.startswith("_") and v > 0}
        return {f"config.{k}": v for k, v in numbers.items()} | {f"given.{k}": v for k, v in self.call.sizes.items()}

    def _probe(self) -> Probe:
        def build(changes: Mapping[str, Any]) -> Shapes:
            change = self._split(changes)
            return self._shapes(construct(self.call, change.fields, change.sizes, self.path))

        return Probe(build, self._values(), self.call.kind.__name__, floats=True)

    def _shapes(self, module: nn.Module) -> Shapes:
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        return {name: tuple(t.shape) for name, t in tensors if name in self.wanted}

    @staticmethod
    def _split(changes: Mapping[str, Any]) -> Change:
        sides = {side: {k.removeprefix(side): v for k, v in changes.items() if k.startswith(side)} for side in _SIDES}
        return Change(sides["config."], sides["given."])

    def _variants(self, probe: Probe, changes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Another field that moves no dim, in the proportion of a dim that was cut."""
        before, shapes = probe.shapes({}), probe.shapes(changes)
        assert before is not None
        assert shapes is not None
        pairs = ((k, s) for n in shapes for k, s in zip(before[n], shapes[n], strict=True))
        ratios = sorted({Fraction(new, old) for old, new in pairs if new != old and old})
        for name, value in probe.values.items():
            for ratio in ratios if type(value) is int and name not in changes else ():
                scaled = {**changes, name: int(value * ratio)}
                if (value * ratio).denominator == 1 and probe.shapes(scaled) == shapes:
                    yield scaled

    def _with_sizes_within(self, change: Change) -> Change | None:
        """With the integers of projections whose remaining dims are wrong; None where they cannot be said."""
        module, calls = self._constructed(change)
        within: dict[str, Mapping[str, int]] = {}
        now = self._shapes(module)
        for name in [n for n, shape in self.wanted.items() if now.get(n) != shape]:
            owner = name.rpartition(".")[0]
            if owner in within:
                continue
            sizes = leaf_sizes(module.get_submodule(owner), calls, owner, self.wanted) if owner else None
            if sizes is None:
                return None
            within[owner] = sizes
        return Change(change.fields, change.sizes, within)

    def _constructed(self, change: Change) -> tuple[nn.Module, Calls]:
        with torch.device("meta"):
            plain = construct(self.call, change.fields, change.sizes, self.path)
            with recording({type(m) for m in plain.modules()}) as calls:
                return construct(self.call, change.fields, change.sizes, self.path), calls

    def _numbers(self, change: Change) -> tuple:
        """What a module and those in it know of their sizes: of two changes with the same here one is enough."""
        module, _ = self._constructed(change)
        return tuple(
            (path, name, value)
            for path, m in module.named_modules()
            for name, value in sorted(vars(m).items())
            if type(value) in (int, float) and not name.startswith("_")
        )

    def _named(self, change: Change, axes: Sequence[int]) -> int:
        """How many of the sizes of the program's axes are among the module's own numbers."""
        return len({v for path, name, v in self._numbers(change) if not path and "idx" not in name} & set(axes))


_SIDES = ("config.", "given.")


def leaf_sizes(module: nn.Module, calls: Calls, path: str, wanted: Wanted) -> dict[str, int] | None:
    """The integers with which a module that takes no config has the wanted shapes; None where there are none."""
    call = calls.get(module)
    mine = {n.rpartition(".")[2]: shape for n, shape in wanted.items() if n.rpartition(".")[0] == path}
    if call is None or not call.sizes:
        return None

    def build(changes: Mapping[str, Any]) -> Shapes:
        new = call.again(None, changes)
        found = {n: tuple(t.shape) for n, t in [*new.named_parameters(), *new.named_buffers()]}
        return {n: found[n] for n in mine}

    solved = next(Probe(build, dict(call.sizes), call.kind.__name__).solve({}, mine), None)
    return solved


def checked(call: Call | None, path: str) -> Call:
    if call is None:
        raise CompressError(f"{path} is not constructed in a way that can be repeated")
    return call
