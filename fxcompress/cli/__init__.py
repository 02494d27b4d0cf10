"""The command line: ``fxcompress inspect | compress | search | distill | verify | kernels | report``.

Exit codes: 0 done; 1 ``verify`` found a law that does not hold; 2 the request cannot be carried out; 3 a proof failed,
which is a fault of fxcompress; 130 interrupted.
"""

from __future__ import annotations

import io
import signal
import sys
from typing import Any

import transformers
import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from typer.core import TyperGroup

from fxcompress.cli.compress import compress
from fxcompress.cli.distill import distill
from fxcompress.cli.inspect import inspect
from fxcompress.cli.kernels import kernels
from fxcompress.cli.report import report
from fxcompress.cli.search import search
from fxcompress.cli.verify import verify
from fxcompress.distillation.ranks import says
from fxcompress.errors import CompressError, ProofError


class Commands(TyperGroup):
    """Errors of the user, of the machine and of ours are said in a line each; a traceback is a bug."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `| head` closed it: typer leaves without a word
        except (CompressError, OSError, SafetensorError) as error:
            _leave(2, str(error), error)
        except ProofError as error:
            _leave(3, str(error), error)
        except KeyboardInterrupt as error:
            _leave(130, f"interrupted, {error if error.args else 'nothing was written under its final name'}", error)


def _leave(code: int, message: str, error: BaseException) -> None:
    if not says(error):
        raise typer.Exit(code)
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[red]error:[/] {escape(message)}", highlight=False)
    for note in getattr(error, "__notes__", ()):
        console.print(escape(note), highlight=False, style="dim")
    raise typer.Exit(code)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (inspect, compress, search, distill, verify, kernels, report):
    app.command()(command)


@app.callback()
def quiet() -> None:
    """Compress Mamba, hybrid and Transformer language models, with proofs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file may be no text
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a batch system ends a job: leave as after Ctrl-C
    app()
