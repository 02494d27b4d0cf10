"""Compress a trained hybrid of Mamba-2, attention and FFN layers in every direction at once, and win the quality back.

    python tools/demo_hybrid.py [MODEL]

SSM heads, FFN neurons, residual channels and a layer go in one call; then the result learns from the original for some
minutes. The model and the texts are in examples/models; the result lies in demo-hybrid-output. ``tools/demo`` runs this
after tools/demo.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from demo import clear, console, steps
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import fxcompress
from fxcompress import Training
from fxcompress.distillation import Distilled
from fxcompress.passes import PruneEmbedding, PruneFFN, PruneSSMHeads, RemoveLayers

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "demo-hybrid-output"
MODELS = ROOT / "examples" / "models"
PASSES = [
    RemoveLayers(count=1, score="kl"),
    PruneSSMHeads(ratio=0.25, score="activation"),
    PruneFFN(ratio=0.25, score="activation"),
    PruneEmbedding(ratio=0.2, score="activation"),
]
LENGTH = 256  # tokens of a row, the longest that the model was trained with
CALIBRATION = 16  # rows
TRAINING = Training(steps=80, batch_size=8, learning_rate=3e-3, min_learning_rate=1e-4, log_every=10, device="cpu")
PROMPT, ANSWER = "He opened the door, and", 40


def main(folder: Path = MODELS / "hybrid") -> None:
    started = time.monotonic()
    clear(OUTPUT)
    logging.set_verbosity_error()  # without mamba-ssm it says at every op that it is slow
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = rows_of(folder, MODELS / "texts" / "novels.txt")
    console.rule("A hybrid of Mamba-2, attention and FFN layers")
    small = fxcompress.apply(model, PASSES, calibration=rows[:CALIBRATION], progress=steps)
    console.print(small.report)
    small.report.notes["demo"] = {"model": folder.name, "text": "novels of examples/models/texts"}
    found = fxcompress.distill(
        small,
        folder,
        rows[CALIBRATION:],
        training=TRAINING,
        held_out=rows_of(folder, MODELS / "texts" / "held-out.txt"),
        length=LENGTH,
        out=OUTPUT,
        progress=steps,
        log=lambda line: console.print(f"  step {line.step} of {line.steps}: {line.loss:.3f} nats from the original"),
    )
    again = AutoModelForCausalLM.from_pretrained(OUTPUT, dtype=torch.float32).eval()
    console.print(scores(found, model.num_parameters(), again.num_parameters()))
    for name, speaker in (("original", model), ("compressed and distilled", again)):
        console.print(f"{said(speaker, folder)} ({name})", style="italic", markup=False)
    console.print(f"{OUTPUT} holds the model and its report. {time.monotonic() - started:.0f} s in all.")


def rows_of(folder: Path, text: Path) -> torch.Tensor:
    """A text as rows of tokens (count, LENGTH); what is left at its end is dropped."""
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=sys.maxsize)
    ids = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def scores(found: Distilled, whole: int, kept: int) -> Table:
    table = Table(title="On novels by authors that neither was trained with", title_justify="left")
    for head in ("", "parameters", "perplexity", "nats from the original", "the same next token"):
        table.add_column(head, justify="right" if head else "left")
    assert found.of_teacher is not None
    table.add_row("original", f"{whole:,}", f"{found.of_teacher.perplexity:.2f}")
    for name, score in (("compressed", found.before), ("and distilled", found.after)):
        assert score is not None
        table.add_row(name, f"{kept:,}", f"{score.perplexity:.2f}", f"{score.kl:.3f}", f"{score.agreement:.1%}")
    return table


def said(model: Any, folder: Path) -> str:
    """The prompt and the likeliest tokens after it, in one line."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    return " ".join(tokenizer.decode(model.generate(ids, max_new_tokens=ANSWER, do_sample=False)[0]).split())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
