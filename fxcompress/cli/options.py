"""The argument that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = Annotated[Path, typer.Argument(metavar="MODEL", help="A model's directory, a config.json, or a result")]
