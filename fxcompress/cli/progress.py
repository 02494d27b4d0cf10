"""Progress on stderr: a bar for every step that takes longer than a second, and a line with the time that it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SLOW = 1.0  # seconds


class Steps:
    """A ``fxcompress.pipeline.Progress``: ``with steps("calibration", 16) as advance: ... advance()``."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def __call__(self, what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        started = time.monotonic()
        hidden = not self.console.is_terminal
        with _Slow(*_columns(total), console=self.console, transient=True, disable=hidden) as bars:
            task = bars.add_task(what, total=total)
            yield lambda: bars.advance(task)
        took = time.monotonic() - started
        if took >= SLOW:
            self.console.print(f"{what}: {took:.1f} s", style="dim", highlight=False)


class _Slow(Progress):
    """Shows nothing in the first second."""

    def get_renderables(self) -> Iterable[RenderableType]:
        if any((task.elapsed or 0.0) >= SLOW for task in self.tasks):
            yield from super().get_renderables()


def _columns(total: int | None) -> list:
    count = [] if total is None else [MofNCompleteColumn()]
    return [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn()]
