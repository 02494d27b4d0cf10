"""The config that a result has, found by probing and never by family.

Which field of a config means which dim is asked of the model class itself: change an integer field (or two that a
validator couples), build on ``meta``, see which parameters' dims move and by how much. The field is then solved for the
sizes that are wanted, until all shapes agree.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch

from fxcompress.errors import CompressError

Shapes = dict[str, tuple[int, ...]]
Wanted = Mapping[str, tuple[int | None, ...]]  # None: any size
_DEPTH = 8  # fields that may change together


class NotExpressible(CompressError):
    """No config of the model's class describes the result."""


def find_configs(model_class: type, config: Any, target: Shapes, removed: Mapping[str, Sequence[int]]) -> Iterator[Any]:
    """Configs whose models have the target's names and shapes, the likeliest first.

    Several may: 4 heads of 8 are as wide as 8 of 4, so the caller compares what the models compute. ``removed``:
    positions taken out of each list of layers, by the list's old length. Raises NotExpressible at the end if there was
    none, with a parameter that no field explains.
    """
    probe = Probe.of_model(model_class, config)
    seen: set[str] = set()
    for start in _without_layers(config, removed):
        for solved in probe.solve(start, target):
            for changes in (solved, *probe.with_equals(solved, target)):
                key = repr(sorted(changes.items()))
                if key not in seen:
                    seen.add(key)
                    yield with_fields(config, changes)
    if not seen:
        raise NotExpressible(probe.explain())


def with_fields(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config of the same class with other fields. Raises what its validators raise."""
    values = copy.deepcopy(config.to_dict())
    values.update(changes)
    return type(config).from_dict(values)


@dataclass
class Probe:
    """Builds something on ``meta`` from changed fields and remembers the shapes of its tensors.

    ``floats``: a field that multiplies a size may become a fraction, such that the size rounds down to the wanted one.
    """

    build: Callable[[Mapping[str, Any]], Shapes]
    values: Mapping[str, Any]
    kind: str
    floats: bool = False
    _shapes: dict[str, Shapes | None] = field(default_factory=dict)
    _closest: tuple[int, str] = (1 << 30, "")

    @classmethod
    def of_model(cls, model_class: type, config: Any) -> Probe:
        """Of a whole model, by configs that its class accepts."""

        def build(changes: Mapping[str, Any]) -> Shapes:
            return {n: tuple(t.shape) for n, t in model_class(with_fields(config, changes)).state_dict().items()}

        return cls(build, config.to_dict(), model_class.__name__)

    def shapes(self, changes: Mapping[str, Any]) -> Shapes | None:
        """Shapes of all tensors with the changed fields, None where the class refuses them."""
        key = repr(sorted(changes.items()))
        if key not in self._shapes:
            self._shapes[key] = self._build(changes)
        return self._shapes[key]

    def _build(self, changes: Mapping[str, Any]) -> Shapes | None:
        logging.disable(logging.WARNING)
        try:
            with torch.device("meta"):
                return self.build(changes)
        except Exception:  # a validator's refusal may be any exception; a config that does not build explains nothing
            return None
        finally:
            logging.disable(logging.NOTSET)

    def solve(self, changes: dict[str, Any], target: Wanted, depth: int = _DEPTH) -> Iterator[dict[str, Any]]:
        """Set one more field so that a wrong dim becomes right, and go on until none is wrong."""
        now = self.shapes(changes)
        if now is None or now.keys() != target.keys():
            return
        wrong = _differing(now, target)
        if not wrong:
            yield changes
            return
        name = wrong[0][0]
        self._closest = min(self._closest, (len(wrong), f"{name} of {now[name]} would have to be {target[name]}"))
        # one dim says which field it needs; where fractions are allowed any may, so that another has to tell
        asked = {(now[n][i], size): (n, i, size) for n, i, size in reversed(wrong)}
        dims = list(asked.values()) if self.floats else wrong[:1]
        steps = {self._key(step): step for n, i, size in dims for step in self._steps(changes, now, n, i, size)}
        better = {key: self._wrong({**changes, **step}, target) for key, step in steps.items()}
        for key in sorted(better, key=better.__getitem__):
            if depth > 0 and better[key] < len(wrong):
                yield from self.solve({**changes, **steps[key]}, target, depth - 1)

    def with_equals(self, changes: Mapping[str, Any], target: Wanted) -> Iterator[dict[str, Any]]:
        """The same with one more field changed alike, which had the same value and which no shape goes by.

        The class may still: KV heads of latent attention have no weights of their own, and repeat to the query heads.
        """
        for f, new in changes.items():
            for g, value in self.values.items():
                more = {**changes, g: new}
                if type(value) is int and value == self.values.get(f) and g not in changes:
                    now = self.shapes(more)
                    if now is not None and now.keys() == target.keys() and not _differing(now, target):
                        yield more

    @staticmethod
    def _key(step: Mapping[str, Any]) -> str:
        return repr(sorted(step.items()))

    def _wrong(self, changes: Mapping[str, Any], target: Wanted) -> int:
        now = self.shapes(changes)
        if now is None or now.keys() != target.keys():
            return 1 << 30
        return len(_differing(now, target))

    def _steps(self, changes: dict, now: Shapes, name: str, dim: int, wanted: int) -> Iterator[dict[str, Any]]:
        """Settings of one field, or of two that only move together, that bring one dim to the wanted size."""
        values = {**self.values, **changes}
        fields = [f for f, v in values.items() if type(v) is int and v > 1]
        for f in fields:
            value = values[f]
            for trial in (2 * value, value + 1, value // 2):
                moved = self.shapes({**changes, f: trial})
                if moved is None or moved.keys() != now.keys():
                    continue
                slope, over = moved[name][dim] - now[name][dim], trial - value
                if slope and (wanted - now[name][dim]) * over % slope == 0:
                    step = {f: value + (wanted - now[name][dim]) * over // slope}
                    if step[f] > 0:
                        yield from [step] if self.shapes({**changes, **step}) else self._together(changes, step)
                break
        if self.floats:
            yield from self._fractions(changes, now, name, dim, wanted)
        for f, g in ((f, g) for f in fields for g in fields if f < g):
            alone = self.shapes({**changes, f: 2 * values[f]})
            if alone is not None and alone.keys() == now.keys():
                continue
            up = {h: Fraction(values[h] * wanted, now[name][dim]) for h in (f, g)}
            down = {h: Fraction(values[h] * now[name][dim], wanted or 1) for h in (f, g)}
            for pair in (up, {f: up[f], g: down[g]}, {f: down[f], g: up[g]}):  # h·e = n·d has factors on either side
                if all(value.denominator == 1 for value in pair.values()):
                    yield {h: int(value) for h, value in pair.items()}

    def _together(self, changes: dict, step: dict[str, int]) -> Iterator[dict[str, int]]:
        """A step that the class refuses, with another field in the same proportion."""
        values = {**self.values, **changes}
        ((f, new),) = step.items()
        for g in (g for g, v in values.items() if type(v) is int and v > 1 and g != f):
            if values[g] * new % values[f] == 0 and self.shapes({**changes, **step, g: values[g] * new // values[f]}):
                yield {**step, g: values[g] * new // values[f]}

    def _fractions(self, changes: dict, now: Shapes, name: str, dim: int, wanted: int) -> Iterator[dict[str, float]]:
        """Settings of one field to a fraction, found by bisection: a dim grows with what multiplies it."""
        values = {**self.values, **changes}
        for f in (f for f, v in values.items() if type(v) in (int, float) and v > 0):
            twice = self.shapes({**changes, f: 2 * values[f]})
            if twice is None or twice.keys() != now.keys() or twice[name][dim] <= now[name][dim]:
                continue
            low, high = 0.0, float(2 * values[f])
            while twice[name][dim] < wanted and high < 64 * values[f]:
                high *= 2
                twice = self.shapes({**changes, f: high}) or twice
            for _ in range(60):
                middle = (low + high) / 2
                found = self.shapes({**changes, f: middle})
                got = found[name][dim] if found and found.keys() == now.keys() else 0
                if got == wanted:
                    yield {f: self._shortest({**changes, f: middle}, f, (name, dim), wanted)}
                    break
                low, high = (middle, high) if got < wanted else (low, middle)

    def _shortest(self, changes: dict, f: str, at: tuple[str, int], wanted: int) -> float:
        """The number with the fewest digits near a field's value with which a dim still has the wanted size."""
        name, dim = at
        for digits in range(1, 12):
            near = round(changes[f], digits)
            found = self.shapes({**changes, f: near}) or {}
            if near > 0 and name in found and found[name][dim] == wanted:
                return near
        return changes[f]

    def forget(self) -> None:
        """Explain what is asked from here on."""
        self._closest = (1 << 30, "")

    def explain(self) -> str:
        if not self._closest[1]:
            return f"no config of {self.kind} has the layers of the result"
        return f"no config of {self.kind} has the shapes of the result: {self._closest[1]}"


def _differing(now: Shapes, target: Wanted) -> list[tuple[str, int, int]]:
    """Dims that have another size than they should: tensor, dim, wanted size."""
    sizes = ((name, i, size) for name, shape in target.items() for i, size in enumerate(shape))
    return [(name, i, size) for name, i, size in sizes if size is not None and now[name][i] != size]


def _without_layers(config: Any, removed: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Any]]:
    """Changes to the fields that count or list layers, for a config without the removed ones, the likeliest first.

    Which lists run over layers is not said by a config, only their length hints at it: first lists of words (types of
    layers), then words and patterns, then everything of that length, then none. Last, one list at a time is taken for
    positions of layers (of those with attention, say), which move down.
    """
    if not removed:
        yield {}
        return
    values = config.to_dict()
    (length, positions), *others = removed.items()
    if others:
        raise NotExpressible("layers were removed from several lists of modules")
    total = int(length)
    lists = {name: v for name, v in values.items() if isinstance(v, list | tuple | str) and len(v) == total}
    words = [n for n, v in lists.items() if not isinstance(v, str) and all(isinstance(item, str) for item in v)]
    patterns = [n for n, v in lists.items() if isinstance(v, str)]
    counters = [name for name, value in values.items() if type(value) is int and value == total]
    cuts = [
        {name: _without(lists[name], positions) for name in names}
        for names in dict.fromkeys(map(tuple, (words, words + patterns, lists, [])))
    ]
    cuts += [{name: _moved(v, positions)} for name, v in values.items() if _are_positions(v, total)]
    for cut in cuts:
        for counter in counters:
            yield {**cut, counter: total - len(positions)}
        yield cut


def _without(items: Any, positions: Sequence[int]) -> Any:
    kept = [item for i, item in enumerate(items) if i not in positions]
    return "".join(kept) if isinstance(items, str) else kept


def _are_positions(value: Any, total: int) -> bool:
    """Could a field be a list of layers by position?"""
    return isinstance(value, list | tuple) and all(type(i) is int and 0 <= i < total for i in value) and len(value) > 0


def _moved(places: Sequence[int], removed: Sequence[int]) -> list[int]:
    """Positions as they are once some are gone."""
    return [i - sum(gone < i for gone in removed) for i in places if i not in removed]
