"""``fxcompress verify``: a result against its original, from the files alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxcompress.cli.options import MODEL, REVISION
from fxcompress.cli.progress import Steps
from fxcompress.cli.replay import Check, checks
from fxcompress.source import open_source


def verify(
    original: MODEL,
    result: Annotated[str, typer.Argument(metavar="RESULT", help="The directory that `fxcompress compress` wrote")],
    revision: REVISION = None,
) -> None:
    """Replay a result's plan on its original and check every law; exit code 1 where one does not hold."""
    steps = Steps(Console(stderr=True))
    found = checks(open_source(original, revision, progress=steps), open_source(result, progress=steps), steps)
    Console().print(_table(found))
    if any(check.holds is False for check in found):
        raise typer.Exit(1)


def _table(found: list[Check]) -> Table:
    table = Table()
    for name in ("of", "check", "", "detail"):
        table.add_column(name, overflow="fold")
    for check in found:
        table.add_row(check.of, check.name, _VERDICTS[check.holds], escape(check.detail))
    return table


_VERDICTS = {True: "[green]holds[/]", False: "[bold red]FAILS[/]", None: "[yellow]not checked[/]"}
