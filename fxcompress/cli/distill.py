"""``fxcompress distill``: an estimate first, then a line for every few steps, then the scores before and after."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxcompress.cli.options import MODEL
from fxcompress.cli.progress import Steps
from fxcompress.distillation.distilled import Distilled
from fxcompress.distillation.estimate import Estimate
from fxcompress.distillation.float8 import Float8
from fxcompress.distillation.losses import Divergence
from fxcompress.distillation.objective import Objective, Weight
from fxcompress.distillation.prepared import Request, prepared
from fxcompress.distillation.run import carry_out
from fxcompress.distillation.training import Precision, Training
from fxcompress.errors import CompressError

DATA = Annotated[list[Path], typer.Option("--data", metavar="FILE", help="UTF-8 text to train on; repeatable")]
HELD = Annotated[Path | None, typer.Option(metavar="FILE", help="Text to score before and after, not in the data")]
STEPS = Annotated[int | None, typer.Option(min=1, help="Of the optimiser [as many as --epochs takes]")]
KEEPS = Annotated[int, typer.Option(min=1, help="Steps between checkpoints, from which a stopped run goes on")]
CLIP = "Recompute activations in the backward pass: less memory, a third more time"


def distill(
    student: MODEL,
    data: DATA,
    teacher: Annotated[str | None, typer.Option(metavar="DIR", help="The model that the student learns from")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="The directory to write")] = None,
    held_out: HELD = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens a row")] = 512,
    steps: STEPS = None,
    epochs: Annotated[float, typer.Option(help="Times that the text is seen")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that run at once")] = 4,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches a step")] = 1,
    lr: Annotated[float, typer.Option(help="The learning rate at its peak")] = 1e-4,
    min_lr: Annotated[float | None, typer.Option(help="At the end of its cosine [a tenth]")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps [60, at most a tenth of all]")] = None,
    divergence: Annotated[Divergence, typer.Option(help="From the teacher's next token")] = "forward_kl",
    temperature: Annotated[float, typer.Option(help="Of both models' logits")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of the teacher's tokens, the rest as one")] = None,
    ce: Annotated[str, typer.Option(metavar="WEIGHT", help="Of the text's own cross-entropy, or dynamic")] = "0",
    states: Annotated[str, typer.Option(metavar="WEIGHT", help="Of intermediate states, or dynamic")] = "0",
    state_pair: Annotated[
        list[str] | None, typer.Option(metavar="N:M", help="Places of student and teacher [where layers were removed]")
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What the teacher says, kept to be used again; with --top-k"),
    ] = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="Train on the text alone: a teacher, before it teaches with that text")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of rows")] = 0,
    save_every: KEEPS = 100,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines")] = 10,
    precision: Annotated[
        Precision | None, typer.Option(help="That layers compute in [bfloat16 on a GPU, else float32]")
    ] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Linear layers but those of the first and last four")] = False,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help=CLIP)] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Run both models through torch.compile")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the estimate and write nothing")] = False,
) -> None:
    """Train a smaller model against the one that it was made from.

    A run that was stopped goes on from its last checkpoint when the same command is given again.
    """
    progress = Steps(Console(stderr=True))
    training = Training(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=lr,
        min_learning_rate=lr / 10 if min_lr is None else min_lr,
        warmup=warmup,
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        precision=precision,
        float8=Float8() if fp8 else None,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
        device=device,
    )
    pairs = tuple(map(_pair, state_pair)) if state_pair else None
    objective = Objective(divergence, temperature, top_k, _weight("--ce", ce), _weight("--states", states), pairs)
    if out is None and not dry_run:
        raise CompressError("-o OUT is missing: the directory to write; --dry-run does without")
    _require_teacher(teacher, correct)
    target = None if dry_run else out
    request = Request(student, teacher, data, objective, training, held_out, length, offline, True, progress, target)
    with prepared(request) as ready:
        if ready.ranks.first:
            _show_estimate(ready.estimate, ready.notes, Console(stderr=not dry_run))
        if dry_run:
            return
        assert out is not None
        found = carry_out(ready, out, lambda line: progress.console.print(_told(line), highlight=False))
    if ready.ranks.first:
        _show(found, out)


def _require_teacher(teacher: str | None, correct: bool) -> None:
    if (teacher is None) != correct:
        raise CompressError("say what to learn from by one of --teacher DIR and --correct, which takes the text alone")


def _weight(option: str, text: str) -> Weight:
    try:
        return "dynamic" if text == "dynamic" else float(text)
    except ValueError:
        raise CompressError(f"{option} {text!r} is neither a number nor 'dynamic'") from None


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    if match is None:
        raise CompressError(f"--state-pair {text!r} is not of the form 14:30, the student's place and the teacher's")
    return int(match[1]), int(match[2])


def _show_estimate(estimate: Estimate, notes: list[str], console: Console) -> None:
    table = Table(title="Estimate", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, size in estimate.memory.items():
        table.add_row(name, _size(size))
    table.add_row("memory altogether", f"{_size(estimate.bytes)} of {_size(estimate.available)}", style="bold")
    table.add_row("parameters that are trained", f"{estimate.parameters:,}")
    table.add_row("tokens", f"{estimate.steps * estimate.tokens_per_step:,} in {estimate.steps:,} steps")
    table.add_row("time, by one batch", _duration(estimate.seconds))
    console.print(table, highlight=False)
    for note in notes:
        console.print(escape(note), style="dim", highlight=False)
    if not estimate.fits:
        console.print("[yellow]that is more memory than there is:[/] take a smaller batch with more accumulation")


def _told(line: Any) -> str:
    return (
        f"step {line.step:,}/{line.steps:,}  loss {line.loss:.4f}  {line.tokens_per_second:,.0f} tokens/s "
        f" {_duration(line.seconds_left)} left"
    )


def _show(found: Distilled, out: Path) -> None:
    console = Console(highlight=False)
    console.print(found)
    console.print(f"\nsaved to {out}", markup=False)


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
