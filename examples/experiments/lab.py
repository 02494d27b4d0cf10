"""What every experiment needs: a teacher, texts as tokens, runs that are known by a name and done once, and a judge.

A cell is one run with one seed: which rows it was calibrated and trained with, in which order, and for a model that
starts anew its weights. It is kept in a file when it is there: a stopped experiment goes on, and experiments share what
they have in common.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for examples/reference

from reference import fused, memory, texts

import fxcompress
from fxcompress import Objective, Training

ROOT = Path(__file__).resolve().parents[2]
LENGTH, BATCH = 256, 16  # tokens of a row, rows of a step
CALIBRATION = 64  # rows
PART = 1 / 40  # of the teacher's tokens that a distillation takes
RATES = (1e-3, 2e-3, 4e-3)
JUDGED = 12  # every so many-th row of the held-out text is judged


@dataclass(frozen=True)
class Lab:
    """``tokens``: of the texts, by their names; ``taught``: with how many tokens the teacher was trained, at which
    learning rate."""

    teacher: PreTrainedModel
    tokenizer: Tokenizer
    tokens: dict[str, np.ndarray]
    taught: tuple[int, float]
    seeds: range
    output: Path
    compile: bool

    @classmethod
    def opened(cls, arguments: argparse.Namespace) -> Lab:
        folder, output = arguments.teacher, arguments.output
        output.mkdir(parents=True, exist_ok=True)
        require_same(output / "teacher.txt", digest(folder / "model.safetensors"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        files = {name: path for name, path in vars(arguments).items() if name.endswith("text")}
        tokens = {name: encoded(path, tokenizer, output) for name, path in files.items()}
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        training = json.loads((folder / "training.json").read_text())
        taught = training["tokens"], training["learning_rate"]
        return cls(teacher, tokenizer, tokens, taught, range(arguments.seeds), output, arguments.compile)

    def cell(self, name: str, seed: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run gave, from the file if it is there."""
        file = self.output / f"{name}, seed {seed}.json"
        if not file.exists():
            print(f"{name}, seed {seed}", flush=True)
            torch.manual_seed(seed)
            found = run()
            beside = file.with_suffix(".new")
            beside.write_text(json.dumps(found))
            beside.replace(file)
        return json.loads(file.read_text())

    def rows(self, seed: int, count: int, text: str = "text") -> Tensor:
        """(count, length) of a text in an order that the seed says; a text that ends begins again in another order."""
        tokens = self.tokens[text]
        whole = len(tokens) // LENGTH
        orders = np.concatenate(
            [np.random.default_rng((seed, again)).permutation(whole) for again in range(-(-count // whole))]
        )
        starts = orders[:count].astype(np.int64) * LENGTH
        return torch.from_numpy(np.stack([tokens[start : start + LENGTH] for start in starts]).astype(np.int64))

    def steps(self, part: float) -> int:
        """Of the optimiser, for a part of the tokens that the teacher was trained with."""
        return max(1, round(part * self.taught[0] / (LENGTH * BATCH)))

    def tokens_of(self, part: float) -> int:
        return self.steps(part) * LENGTH * BATCH

    def about(self) -> str:
        """The teacher in a few words, for the page."""
        return (
            f"{type(self.teacher).__name__} with {self.teacher.num_parameters():,} parameters and"
            f" {self.bits_of_teacher():.4f} bits per byte"
        )

    def compressed(self, passes: list[Any], seed: int) -> PreTrainedModel:
        """The teacher after some passes, every one proven, as a model of transformers."""
        rows = self.rows(1000 + seed, CALIBRATION)  # not those that training begins with
        return fxcompress.apply(self.teacher, passes, calibration=rows.split(BATCH)).to_transformers()

    def trained(
        self,
        model: PreTrainedModel,
        seed: int,
        rate: float,
        part: float = PART,
        teacher: PreTrainedModel | None = None,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        text: str = "text",
    ) -> PreTrainedModel:
        """A model after training on a part of the teacher's tokens: against a teacher, or on the text alone."""
        steps = self.steps(part)
        training = Training(
            steps=steps,
            batch_size=BATCH,
            learning_rate=rate,
            min_learning_rate=rate / 50,
            betas=(0.9, 0.99),
            seed=seed,
            precision="bfloat16",
            log_every=max(1, steps // 10),
            compile=self.compile,
        )
        rows = self.rows(seed, steps * BATCH, text)
        with memory.kept(), fused.installed():
            if teacher is None:
                done = fxcompress.correct_teacher(model, rows, training=training, length=LENGTH, log=told)
            else:
                kinds = {"objective": objective, "training": training, "length": LENGTH}
                done = fxcompress.distill(model, teacher, rows, log=told, **kinds)
        return done.student

    def rate(self, name: str, run: Callable[[float], dict[str, Any]]) -> float:
        """The learning rate after which the first seed is best; its cells are those of ``runs`` with that rate."""
        tried = {rate: self.cell(f"{name}, rate {rate:g}", 0, lambda rate=rate: run(rate)) for rate in RATES}
        return min(tried, key=lambda rate: tried[rate]["after"])

    def runs(self, name: str, rate: float, run: Callable[[int], dict[str, Any]], seeds: int | None = None) -> list[Any]:
        """The cells of all seeds, or of the first few."""
        asked = self.seeds[:seeds]
        return [self.cell(f"{name}, rate {rate:g}", seed, lambda seed=seed: run(seed)) for seed in asked]

    def bits_of_teacher(self, text: str = "held_out_text") -> float:
        return self.cell(f"teacher, {text}", 0, lambda: {"after": self.bits(self.teacher, text)})["after"]

    @torch.no_grad()
    def bits(self, model: PreTrainedModel, text: str = "held_out_text") -> float:
        """Bits per byte of a held-out text, its rows judged one by one."""
        tokens, counts = self.tokens[text], texts.byte_counts(self.tokenizer)
        nats, count = 0.0, 0
        with memory.kept(), fused.installed():
            for batch in texts.held_out(tokens, LENGTH, BATCH, JUDGED):
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
                nats += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
                count += int(counts[batch[:, 1:]].sum())
        return nats / math.log(2) / count


def require_same(file: Path, value: str) -> None:
    """Results of another teacher are none of this one."""
    if file.exists() and file.read_text() != value:
        raise SystemExit(f"{file.parent} has results of another teacher: give another --output")
    file.write_text(value)


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def encoded(path: Path, tokenizer: Tokenizer, folder: Path) -> np.ndarray:
    """A text as one row of tokens, kept beside the results by the hash of the text."""
    file = folder / f"{digest(path)[:16]}.npy"
    if not file.exists():
        beside = folder / f"new-{file.name}"
        np.save(beside, texts.encode(tokenizer, texts.read(path)))
        beside.replace(file)
    return np.load(file, mmap_mode="r")


def told(line: Any) -> None:
    print(
        f"  step {line.step} of {line.steps}, loss {line.loss:.4f}, {line.tokens_per_second:.0f} tokens/s", flush=True
    )


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("text", type=Path, help="what the teacher was trained with, plain or .xz")
    made.add_argument("held_out_text", type=Path, help="what is judged by")
    made.add_argument("--teacher", type=Path, default=ROOT / "examples" / "models" / "hybrid")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--output", type=Path, default=ROOT / "experiments-output")
    made.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    made.add_argument("--compile", action="store_true", help="run the models through torch.compile")
    return made
