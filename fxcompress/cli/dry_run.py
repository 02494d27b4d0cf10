"""What a compression would result in: sizes and config, without values."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from fxcompress.export.choose import SAID
from fxcompress.run import Planned


def show_dry_run(planned: Planned) -> None:
    console, choice = Console(highlight=False), planned.choice
    console.print("[bold]dry run[/]: sizes only, no weights were read and nothing is written\n")
    console.print(planned.result.report)
    console.print()
    if choice.why:
        console.print(f"stock transformers would not load the result; {SAID[choice.loads_with]}")
        console.print(choice.why, markup=False, style="dim")
    if choice.form is None:
        return
    table = Table(title="Config", title_justify="left")
    for name in ("field", "before", "after"):
        table.add_column(name, overflow="fold")
    changed = changed_fields(planned.original.program.origin.config, choice.form.config)
    for name, (before, after) in changed.items():
        table.add_row(name, str(before), str(after))
    console.print(table)


def changed_fields(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, (before, after)."""
    old, new = before.to_dict(), after.to_dict()
    return {name: (old.get(name), new.get(name)) for name in new if old.get(name) != new.get(name)}
