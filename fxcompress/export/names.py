"""What the tensors of a result are called in a checkpoint: lists of layers are counted anew where some were removed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fxcompress.plan import Step
from fxcompress.program import Program


def checkpoint_names(program: Program, steps: Iterable[Step]) -> dict[str, str]:
    """Every name that a model of the result has, aliases of tied tensors too -> the tensor's name in the program."""
    removed = _removed(steps)
    out = {}
    for first in dict.fromkeys([*program.names, *program.used_names()]):
        for alias in program.names.get(first, (first,)):
            if not any(alias.startswith(path + ".") for path in removed):
                out[renumbered(alias, removed)] = first
    return out


def names_in_place(program: Program, steps: Iterable[Step]) -> dict[str, str]:
    """The same where removed layers leave gaps that nothing closes."""
    removed = [path + "." for path in _removed(steps)]
    names = ((alias, first) for first in program.state for alias in program.names.get(first, (first,)))
    return {alias: first for alias, first in names if not alias.startswith(tuple(removed))}


def renumbering(program: Program, steps: Iterable[Step]) -> dict[str, str]:
    """Every tensor's name in the program -> the first of its names in a checkpoint without the removed layers."""
    out: dict[str, str] = {}
    for new, old in checkpoint_names(program, steps).items():  # a shared tensor stays while one of its owners does
        out.setdefault(old, new)
    return out


def renumbered(name: str, removed: Sequence[str]) -> str:
    """A name as it is once the items of lists in ``removed`` are gone; other removed modules leave no gap to close."""
    removed = [path for path in removed if is_item(path)]
    for path in removed:
        container, _, _ = path.rpartition(".")
        match = re.match(re.escape(container) + r"\.(\d+)\.", name)
        if match:
            below = sum(p.startswith(container + ".") and int(p.rpartition(".")[2]) < int(match[1]) for p in removed)
            return f"{container}.{int(match[1]) - below}.{name[match.end() :]}"
    return name


def removed_layers(program: Program, steps: Iterable[Step]) -> dict[str, list[int]]:
    """Positions removed from each list of layers, by the list's original length."""
    out: dict[str, list[int]] = {}
    lengths = _original_lengths(program)
    for path in filter(is_item, _removed(steps)):
        container, _, position = path.rpartition(".")
        out.setdefault(str(lengths[container]), []).append(int(position))
    return out


def _removed(steps: Iterable[Step]) -> list[str]:
    return [path for step in steps for path in step.remove]


def is_item(path: str) -> bool:
    """Is it an item of a list of modules? What follows it is counted anew; a part of an item leaves a gap."""
    return path.rpartition(".")[2].isdigit()


def _original_lengths(program: Program) -> dict[str, int]:
    """How many items each list of modules had in the origin, read off the names of its tensors."""
    lengths: dict[str, int] = {}
    for aliases in program.names.values():
        for name in aliases:
            for match in re.finditer(r"\.(\d+)(?=\.)", name):
                container = name[: match.start()]
                lengths[container] = max(lengths.get(container, 0), int(match[1]) + 1)
    return lengths
