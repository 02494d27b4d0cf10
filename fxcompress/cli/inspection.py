"""What ``inspect`` has to say about a model, as plain data: what is printed and what ``--json`` gives are both this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fxcompress.axes import AxisMap
from fxcompress.axes import Group as AxisGroup
from fxcompress.cost import Cost
from fxcompress.program import Program


@dataclass(frozen=True)
class Group:
    """A dependency group: sizes are those of the axes outside it and its own; ``block`` is where it lies wholly."""

    key: str
    roles: list[str]
    sizes: list[int]
    members: list[str]
    pinned: list[str]
    border: bool  # pinned by the model's inputs and outputs alone
    block: str | None


@dataclass(frozen=True)
class Block:
    """A layer, and the layers that are like it in sizes, groups and pins."""

    path: str
    parameters: int
    groups: list[str]  # keys
    like: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """A model's figures, groups and blocks."""

    model: str
    dtypes: list[str]
    figures: dict[str, int]
    groups: list[Group]
    blocks: list[Block]

    @classmethod
    def of(cls, program: Program) -> Inspection:
        paths = _outermost(program)
        groups = [_group(group, paths) for group in program.get(AxisMap).groups]
        return cls(
            model=program.origin.model_class.__name__,
            dtypes=sorted({str(p.dtype).removeprefix("torch.") for _, p in program.parameters()}),
            figures=program.get(Cost).figures.to_json(),
            groups=groups,
            blocks=_blocks(program, paths, groups),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _outermost(program: Program) -> list[str]:
    """The items of lists of modules that are not inside an item of another list, in the order of the graph."""
    items = [path for paths in program.layers().values() for path in paths]
    return [path for path in items if not any(_inside(path, other) for other in items)]


def _inside(name: str, path: str) -> bool:
    return name.startswith(path + ".")


def _group(group: AxisGroup, paths: Sequence[str]) -> Group:
    holding = [path for path in paths if all(_inside(slot.name, path) for slot in group.slots)]
    return Group(
        key=group.key,
        roles=sorted(group.roles),
        sizes=list(group.sizes),
        members=[str(slot) for slot in group.slots],
        pinned=list(group.pinned),
        border=group.border,
        block=holding[0] if holding else None,
    )


def _blocks(program: Program, paths: Sequence[str], groups: Sequence[Group]) -> list[Block]:
    """Each kind of block once, by its first."""
    found: dict[tuple, Block] = {}
    for path in paths:
        own = [group for group in groups if group.block == path]
        parameters = sum(p.numel() for name, p in program.parameters() if _inside(name, path))
        looks = (parameters, *((g.key.removeprefix(path), *g.roles, *g.sizes, bool(g.pinned)) for g in own))
        if looks in found:
            found[looks].like.append(path)
        else:
            found[looks] = Block(path, parameters, [group.key for group in own])
    return list(found.values())
