"""The config that a result has, found by probing and never by family.

Which field of a config means which dim is asked of the model class itself: change an integer field (or two that a
validator couples), build on ``meta``, see which parameters' dims move and by how much. The field is then solved for the
sizes that are wanted, until all shapes agree.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxcompress.errors import CompressError

Shapes = dict[str, tuple[int, ...]]
_DEPTH = 8  # fields that may change together


class NotExpressible(CompressError):
    """No config of the model's class describes the result."""


def find_configs(model_class: type, config: Any, target: Shapes, removed: Mapping[str, Sequence[int]]) -> Iterator[Any]:
    """Configs whose models have the target's names and shapes, the likeliest first.

    Several may: 4 heads of 8 are as wide as 8 of 4, so the caller compares what the models compute. ``removed``:
    positions taken out of each list of layers, by the list's old length. Raises NotExpressible at the end if there was
    none, with a parameter that no field explains.
    """
    probe = Probe(model_class, config)
    seen: set[str] = set()
    for start in _without_layers(config, removed):
        for changes in probe.solve(start, target):
            key = repr(sorted(changes.items()))
            if key not in seen:
                seen.add(key)
                yield probe.config(changes)
    if not seen:
        raise NotExpressible(probe.explain())


@dataclass
class Probe:
    """Builds models on ``meta`` from changed configs and remembers their shapes."""

    model_class: type
    base: Any
    _shapes: dict[str, Shapes | None] = field(default_factory=dict)
    _closest: tuple[int, str] = (1 << 30, "")

    def config(self, changes: Mapping[str, Any]) -> Any:
        values = copy.deepcopy(self.base.to_dict())
        values.update(changes)
        return type(self.base).from_dict(values)

    def shapes(self, changes: Mapping[str, Any]) -> Shapes | None:
        """Shapes of all tensors of the changed model, None where the class refuses the config."""
        key = repr(sorted(changes.items()))
        if key not in self._shapes:
            self._shapes[key] = self._build(changes)
        return self._shapes[key]

    def _build(self, changes: Mapping[str, Any]) -> Shapes | None:
        logging.disable(logging.WARNING)
        try:
            with torch.device("meta"):
                model = self.model_class(self.config(changes))
        except Exception:  # a validator's refusal may be any exception; a config that does not build explains nothing
            return None
        finally:
            logging.disable(logging.NOTSET)
        return {name: tuple(t.shape) for name, t in model.state_dict().items()}

    def solve(self, changes: dict[str, Any], target: Shapes, depth: int = _DEPTH) -> Iterator[dict[str, Any]]:
        """Set one more field so that a wrong dim becomes right, and go on until none is wrong."""
        now = self.shapes(changes)
        if now is None or now.keys() != target.keys():
            return
        wrong = [(name, i) for name, shape in target.items() for i in range(len(shape)) if now[name][i] != shape[i]]
        if not wrong:
            yield changes
            return
        name, dim = wrong[0]
        self._closest = min(self._closest, (len(wrong), f"{name} of {now[name]} would have to be {target[name]}"))
        steps = {self._key(step): step for step in self._steps(changes, now, name, dim, target[name][dim])}
        better = {key: self._wrong({**changes, **step}, target) for key, step in steps.items()}
        for key in sorted(better, key=better.__getitem__):
            if depth > 0 and better[key] < len(wrong):
                yield from self.solve({**changes, **steps[key]}, target, depth - 1)

    @staticmethod
    def _key(step: Mapping[str, Any]) -> str:
        return repr(sorted(step.items()))

    def _wrong(self, changes: Mapping[str, Any], target: Shapes) -> int:
        now = self.shapes(changes)
        if now is None or now.keys() != target.keys():
            return 1 << 30
        return sum(now[n][i] != s for n, shape in target.items() for i, s in enumerate(shape))

    def _steps(self, changes: dict, now: Shapes, name: str, dim: int, wanted: int) -> Iterator[dict[str, int]]:
        """Settings of one field, or of two that only move together, that bring one dim to the wanted size."""
        values = {**self.base.to_dict(), **changes}
        fields = [f for f, v in values.items() if type(v) is int and v > 1]
        for f in fields:
            value = values[f]
            for trial in (2 * value, value + 1, value // 2):
                moved = self.shapes({**changes, f: trial})
                if moved is None or moved.keys() != now.keys():
                    continue
                slope, over = moved[name][dim] - now[name][dim], trial - value
                if slope and (wanted - now[name][dim]) * over % slope == 0:
                    yield {f: value + (wanted - now[name][dim]) * over // slope}
                break
        for f, g in ((f, g) for f in fields for g in fields if f < g):
            if self.shapes({**changes, f: 2 * values[f]}) is not None:
                continue  # it moves alone
            if values[f] * wanted % now[name][dim] or values[g] * wanted % now[name][dim]:
                continue
            yield {h: values[h] * wanted // now[name][dim] for h in (f, g)}

    def explain(self) -> str:
        kind = self.model_class.__name__
        if not self._closest[1]:
            return f"no config of {kind} has the layers of the result"
        return f"no config of {kind} has the shapes of the result: {self._closest[1]}"


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
