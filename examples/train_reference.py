"""Train the reference models: a hybrid of Mamba-2, attention and FFN layers, a Mamba-2 and a Llama of the same cost.

    python examples/train_reference.py TRAIN.txt VALIDATION.txt --output reference-training --minutes 60

Texts are plain or .xz, with <|endoftext|> between documents. What is not there yet is made: a byte-pair tokenizer, the
tokens, for each model a trial of every learning rate, the full run at the best of them, and the finished model with its
card. Given again, the command goes on where it was stopped or killed, with the same batches and the same optimiser.
``log.jsonl`` beside each run has the bits per byte of held-out text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from reference import card, fused, memory, sizes, texts
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP, LEVEL = 0.02, 0.9  # parts of a run: up to the first the learning rate rises, from the second it stays
LEAST = 0.02  # of the learning rate is what stays
EVALUATIONS = 20  # in a run, each on every PART-th window
PART = 24
SAVE_SECONDS = 300


@dataclass(frozen=True)
class Run:
    """One training: which model, how long, how fast."""

    model: str
    rate: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.rate:g}-{self.steps}"


@dataclass(frozen=True)
class Text:
    """What there is to train on and to be judged by."""

    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray


def main(arguments: argparse.Namespace) -> None:
    size, deadline = sizes.SIZES[arguments.size], time.monotonic() + 60 * arguments.minutes
    text = prepare(arguments, size)
    with memory.kept(), fused.installed():
        for model in arguments.models:
            train_and_finish(model, size, text, arguments.output, deadline)


def train_and_finish(model: str, size: sizes.Size, text: Text, folder: Path, deadline: float) -> None:
    """A trial of every learning rate, the full run at the best of them, and the model to keep."""
    trials = [Run(model, rate, size.trial_steps) for rate in size.rates]
    tried = {run: train(run, size, text, folder, deadline) for run in trials}
    best = min(trials, key=lambda run: tried[run][-1]["bits_per_byte"])
    run = Run(model, best.rate, size.steps)
    history = train(run, size, text, folder, deadline)
    finish(run, history, tried, size, text, folder)


def prepare(arguments: argparse.Namespace, size: sizes.Size) -> Text:
    """The tokenizer and the tokens, from the folder or made and put there."""
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        tokenizer = texts.train_tokenizer(texts.read(arguments.train), size.vocabulary)
        replace(folder / "tokenizer.json", lambda path: tokenizer.save(str(path)))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = {}
    for name in ("train", "validation"):
        file = folder / f"{name}.npy"
        if not file.exists():
            encoded = texts.encode(tokenizer, texts.read(getattr(arguments, name)))
            replace(file, lambda path, encoded=encoded: np.save(path, encoded))
        tokens[name] = np.load(file, mmap_mode="r")
    return Text(tokenizer, **tokens)


def train(run: Run, size: sizes.Size, text: Text, folder: Path, deadline: float) -> list[dict[str, Any]]:
    """Train to the end; the history of its evaluations. Leaves the process when the time is up."""
    folder = folder / run.name
    folder.mkdir(exist_ok=True)
    model = sizes.build(run.model, size).to(DEVICE)
    optimiser = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.99), fused=True)
    history, start = resume(folder, model, optimiser)
    torch.compiler.reset()  # what it knows of the model before
    compiled, began = torch.compile(model), time.monotonic()
    saved = began
    every, tokens = math.ceil(run.steps / EVALUATIONS), size.rows * size.length
    for step in range(start, run.steps):
        batch = texts.batch(text.train, step, size.rows, size.length)
        train_step(compiled, optimiser, batch, run.rate, (step + 1) / run.steps)
        now, done = time.monotonic(), step + 1
        evaluates = done % every == 0 or done == run.steps
        if evaluates:
            bits, speed = bits_per_byte(model, text, size, PART), (done - start) * tokens / (now - began)
            history.append({"step": done, "tokens": done * tokens, "bits_per_byte": bits})
            print(f"{run.name}: step {done} of {run.steps}, {bits:.4f} bits per byte, {speed:.0f} tokens/s", flush=True)
        if evaluates or now - saved > SAVE_SECONDS or now > deadline:
            save(folder, model, optimiser, done, history)
            saved = now
        if now > deadline:
            sys.exit(f"{run.name}: {done} of {run.steps} steps; the same command goes on from here")
    return history


def train_step(model: Any, optimiser: torch.optim.Optimizer, batch: Tensor, rate: float, progress: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * schedule(progress)
    loss(model, batch).backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    optimiser.zero_grad()


def loss(model: Any, batch: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of the tokens after the first of each row (rows, length + 1)."""
    batch = batch.to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction=reduction)


def schedule(progress: float) -> float:
    """The learning rate at a part of the run: a linear warm-up, a half-cosine down, and a level end."""
    if progress < WARM_UP:
        return progress / WARM_UP
    falling = min((progress - WARM_UP) / (LEVEL - WARM_UP), 1)
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * falling)) / 2


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Text, size: sizes.Size, part: int = 1) -> float:
    """Of every ``part``-th window of the held-out text; a window sees nothing before its first token."""
    counts, nats, count = texts.byte_counts(text.tokenizer), 0.0, 0
    for batch in texts.held_out(text.validation, size.length, size.rows, part):
        nats += loss(model, batch, "sum").item()
        count += int(counts[batch[:, 1:]].sum())
    return nats / math.log(2) / count


def save(folder: Path, model: nn.Module, optimiser: Any, step: int, history: list[dict[str, Any]]) -> None:
    """Everything that the next step depends on, in one file, and the history once more as a log."""
    moments = optimiser.state_dict()["state"]
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"optimiser.{i}.{key}": value for i, state in moments.items() for key, value in state.items()}
    metadata = {"step": str(step), "history": json.dumps(history)}
    replace(folder / "checkpoint.safetensors", lambda path: save_file(tensors, path, metadata))
    replace(folder / "log.jsonl", lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in history)))


def resume(folder: Path, model: nn.Module, optimiser: Any) -> tuple[list[dict[str, Any]], int]:
    """Take up what was saved: the history and the steps that are done; none if nothing was saved."""
    if not (folder / "checkpoint.safetensors").exists():
        return [], 0
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(folder / "checkpoint.safetensors", "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
        for name in (name for name in file.keys() if name.startswith("optimiser.")):  # noqa: SIM118
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = file.get_tensor(name)
        metadata = file.metadata()
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return json.loads(metadata["history"]), int(metadata["step"])


def finish(
    run: Run, history: list[dict[str, Any]], tried: dict[Run, Any], size: sizes.Size, text: Text, folder: Path
) -> None:
    """The trained model in bfloat16 with tokenizer and card, judged on all of the held-out text as it is saved."""
    final = folder / "models" / run.model
    if (final / "training.json").exists():
        return
    model = sizes.build(run.model, size).to(DEVICE)
    resume(folder / run.name, model, torch.optim.AdamW(parameter_groups(model)))
    model.to(torch.bfloat16).save_pretrained(final)
    texts.save_tokenizer(text.tokenizer, final, size.length)
    model = AutoModelForCausalLM.from_pretrained(final).to(DEVICE)
    bits = bits_per_byte(model, text, size)
    epochs = run.steps * size.rows / (len(text.train) // size.length)
    rates = {trial.rate: rows[-1]["bits_per_byte"] for trial, rows in tried.items()}
    written = card.write(model, size, history, run.rate, rates, bits, epochs)
    replace(final / "README.md", lambda path: path.write_text(written))
    known = {"tokens": history[-1]["tokens"], "learning_rate": run.rate, "bits_per_byte": bits, "history": history}
    replace(final / "training.json", lambda path: path.write_text(json.dumps(known, indent=1) + "\n"))


def replace(path: Path, write: Any) -> None:
    """Write beside and rename, so that what stands at the path is whole at all times."""
    beside = path.with_name(f"new-{path.name}")
    write(beside)
    beside.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", choices=sizes.SIZES, default="large" if DEVICE == "cuda" else "small")
    parser.add_argument("--models", nargs="+", choices=sizes.MODELS, default=sizes.MODELS)
    parser.add_argument("--minutes", type=float, default=math.inf)
    main(parser.parse_args())
