"""``fxcompress inspect``: what a model is made of, what can be cut, and what holds the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from fxcompress.cli import why
from fxcompress.cli.inspection import Block, Group, Inspection
from fxcompress.cli.options import MODEL, REVISION, read_examples
from fxcompress.cli.progress import Steps
from fxcompress.report import FIGURES
from fxcompress.source import open_source


def inspect(
    model: MODEL,
    parameter: Annotated[
        str, typer.Option("--why", metavar="NAME", help="What is cut with this parameter, NAME or NAME[DIM], and why")
    ] = "",
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="With --why: the couplings to this one only")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")] = False,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHAPE", help="An input to capture with, input_ids=2x64; repeatable"),
    ] = None,
    revision: REVISION = None,
) -> None:
    """Show a model's size, its blocks, and the dimensions that can be cut."""
    steps = Steps(Console(stderr=True))
    program = open_source(model, revision, read_examples(example or ()), steps).on_meta().program
    if parameter:
        answer = why.explain(program, parameter, to)
        typer.echo(json.dumps(answer, indent=1)) if as_json else why.show(answer)
    else:
        found = Inspection.of(program)
        typer.echo(json.dumps(found.to_json(), indent=1)) if as_json else _show(found, model)


def _show(found: Inspection, model: str) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{escape(found.model)}[/] in {', '.join(found.dtypes)}, {escape(model)}\n")
    console.print(_figures(found))

    by_key = {group.key: group for group in found.groups}
    across = [group for group in found.groups if group.block is None]
    console.print()
    console.print(_tree("[bold]across blocks[/]", across, {g.key: _ends(g.members) for g in across}))
    for block in found.blocks:
        head = f"[bold]{escape(block.path)}[/]{_and_like(block)}  [dim]{block.parameters:,} parameters[/]"
        groups = [by_key[key] for key in block.groups]
        console.print()
        console.print(_tree(head, groups, {g.key: _modules(g, block.path) for g in groups}))


def _figures(found: Inspection) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, said in FIGURES.items():
        table.add_row(said, f"{found.figures[name]:,}")
    return table


def _tree(head: str, groups: Sequence[Group], where: Mapping[str, str]) -> Tree:
    """``ffn_neuron 80   mlp.gate_proj, mlp.up_proj, mlp.down_proj`` for each group, reasons below what is pinned."""
    tree = Tree(head)
    width = max((len(_label(group)) for group in groups), default=0)
    for group in groups:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=width, style="yellow" if group.pinned else "green")
        line.add_column(style="dim")
        word = "border" if group.border else "pinned"
        pins = "".join(f"\n{word}: {reason}" for reason in group.pinned)
        line.add_row(_label(group), escape(where[group.key] + pins))
        tree.add(line)
    return tree


def _label(group: Group) -> str:
    return f"{' '.join(group.roles) or 'axis'} {'x'.join(map(str, group.sizes))}"


def _and_like(block: Block) -> str:
    """`` … and 29 like it``, with their positions where these are few."""
    if not block.like:
        return ""
    positions = [path.rpartition(".")[2] for path in block.like]
    return f" … and {len(positions)} like it" + (f" ({', '.join(positions)})" if len(positions) <= 12 else "")


def _modules(group: Group, block: str) -> str:
    """``model.layers.0.mlp.up_proj.weight[0]`` is ``mlp.up_proj`` in its block."""
    names = (member.removeprefix(block + ".").partition("[")[0].removesuffix(".weight") for member in group.members)
    return ", ".join(dict.fromkeys(names))


def _ends(members: Sequence[str]) -> str:
    if len(members) < 3:
        return ", ".join(members)
    return f"{members[0]}, {members[1]} … {members[-1]}, {len(members)} dims in all"
