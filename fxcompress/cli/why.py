"""``inspect --why``: what is cut together with a parameter, and the couplings that tie them."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from fxcompress.axes import AxisMap, Group, Slot
from fxcompress.couplings import coupling_graph, path
from fxcompress.errors import CompressError
from fxcompress.program import Program


def explain(program: Program, parameter: str, to: str = "") -> dict[str, Any]:
    """The groups of a parameter, each with pins and a path to every other member; with ``to``, to that one only."""
    axes = program.get(AxisMap)
    slots = _slots(program, axes, parameter)
    targets = _slots(program, axes, to) if to else None
    answers = [_answer(axes, group, slot, targets) for slot in slots for group in axes.groups if slot in group.slots]
    if targets is not None:
        answers = [answer for answer in answers if answer["paths"]]
        if not answers:
            raise CompressError(f"{parameter} and {to} are not tied: no group has both")
    return {"parameter": parameter, "to": to or None, "groups": answers}


def show(answer: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    for group in answer["groups"]:
        label = f"{' '.join(group['roles']) or 'axis'} {'x'.join(map(str, group['sizes']))}"
        console.print(f"[bold]{escape(group['slot'])}[/]  [green]{label}[/]  [dim]group {escape(group['key'])}[/]")
        for reason in group["pinned"]:
            console.print(f"  [yellow]{'border' if group['border'] else 'pinned'}:[/] {escape(reason)}")
        if "vocabulary" in group["roles"] and group["border"]:
            console.print("  [dim]PruneVocabulary cuts it, the logits and the tokenizer with it[/]")
        if not group["paths"]:
            console.print("  [dim]nothing else is cut with it[/]")
        for member, stops, alike in _collapsed(group["paths"]):
            console.print(f"  {escape(member)}" + (f" … and {alike} like it" if alike else ""))
            through = Padding(f"through {escape(_in_short(stops[1:-1]))}", (0, 0, 0, 6), style="dim", expand=False)
            console.print(through)


def _answer(axes: AxisMap, group: Group, slot: Slot, targets: Sequence[Slot] | None) -> dict[str, Any]:
    couplings = coupling_graph(axes, group)
    others = [s for s in group.slots if s != slot and (targets is None or s in targets)]
    return {
        "slot": str(slot),
        "key": group.key,
        "roles": sorted(group.roles),
        "sizes": list(group.sizes),
        "pinned": list(group.pinned),
        "border": group.border,
        "paths": {str(other): path(couplings, slot, other) for other in others},
    }


def _slots(program: Program, axes: AxisMap, text: str) -> list[Slot]:
    """The slots that ``name`` or ``name[dim]`` means; tied parameters go by any of their names."""
    match = re.fullmatch(r"(.+?)(?:\[(\d+)\])?", text)
    given, dim = match.groups() if match else (text, None)
    name = next((first for first, aliases in program.names.items() if given in aliases), given)
    if name not in axes.state:
        near = difflib.get_close_matches(given, [a for aliases in program.names.values() for a in aliases], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        unread = "is not read by the model's forward" if name in program.state else "is no parameter of the model"
        raise CompressError(f"{given} {unread}{hint}")
    rank = len(axes.state[name])
    if dim is not None and int(dim) >= rank:
        raise CompressError(f"{given} has {rank} dims, there is no [{dim}]")
    return [Slot(name, i) for i in range(rank) if dim is None or i == int(dim)]


def _collapsed(paths: Mapping[str, list[str]]) -> list[tuple[str, list[str], int]]:
    """Members alike but for the numbers in their names, as the nearest of them: (it, its path, how many others)."""
    found: dict[str, list[str]] = {}
    for member in paths:
        found.setdefault(re.sub(r"\.\d+\.", ".*.", member), []).append(member)
    nearest = [(min(alike, key=lambda member: len(paths[member])), len(alike) - 1) for alike in found.values()]
    return [(member, paths[member], others) for member, others in nearest]


def _in_short(stops: Sequence[str]) -> str:
    """``linear - add ×64 - embedding``."""
    runs = [(stop, len(list(run))) for stop, run in itertools.groupby(stops)]
    return " - ".join(stop + (f" ×{count}" if count > 1 else "") for stop, count in runs)
