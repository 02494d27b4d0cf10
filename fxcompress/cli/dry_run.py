"""What a compression would result in: sizes and config, without values."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from fxcompress.cli.progress import Steps
from fxcompress.compressed import CompressedModel
from fxcompress.export import NotExpressible


def show_dry_run(original: CompressedModel, planned: CompressedModel, steps: Steps) -> None:
    console = Console()
    console.print("[bold]dry run[/]: sizes only, no weights were read and nothing is written\n")
    console.print(planned.report)
    console.print()
    try:
        with steps("config of the result"):
            result = planned.to_transformers()
    except NotExpressible as refusal:
        console.print("the result would load with fxcompress.load, not with transformers:", highlight=False)
        console.print(str(refusal), markup=False, highlight=False, style="dim")
        return
    table = Table(title="Config", title_justify="left")
    for name in ("field", "before", "after"):
        table.add_column(name, overflow="fold")
    for name, (before, after) in changed_fields(original.program.origin.config, result.config).items():
        table.add_row(name, str(before), str(after))
    console.print(table)


def changed_fields(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, (before, after)."""
    old, new = before.to_dict(), after.to_dict()
    return {name: (old.get(name), new.get(name)) for name in new if old.get(name) != new.get(name)}
