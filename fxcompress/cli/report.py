"""``fxcompress report``: what a result says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fxcompress.export.load import read_manifest
from fxcompress.report import Report


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="The directory that `fxcompress compress` wrote")],
) -> None:
    """Print the report that is stored with a result."""
    Console().print(Report.from_json(read_manifest(result)["report"]))
