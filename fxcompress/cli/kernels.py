"""``fxcompress kernels``: whether sparse kernels would make a pruned model faster on this machine, shape by shape."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from fxcompress.cli.options import MODEL, REVISION
from fxcompress.cli.progress import Steps
from fxcompress.compressed import compress_opened
from fxcompress.passes import UseSparseKernels
from fxcompress.passes.use_sparse_kernels import Phase
from fxcompress.source import Opened, open_source


def kernels(
    model: MODEL,
    batch: Annotated[int, typer.Option(help="Prompts at a time")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a prompt")] = 512,
    decides: Annotated[Phase, typer.Option(help="Where a sparse kernel has to win")] = "both",
    revision: REVISION = None,
) -> None:
    """Time dense against sparse kernels for a pruned model and show both; nothing is written."""
    steps = Steps(Console(stderr=True))
    wanted = UseSparseKernels(batch=batch, length=length, decides=decides)
    program = open_source(model, revision, progress=steps).opened().program
    with steps("weights"):
        program = program.loaded()
    Console().print(compress_opened(Opened(program), [wanted], progress=steps).report.passes_alone())
