"""What every experiment needs: a teacher, texts as tokens, runs that are known by a name and done once, and a judge.

A cell is one run with one seed, which says what rows it was calibrated and trained with, and for a model that starts
anew its weights. It is kept in a file that is named by all that it depends on: a stopped experiment goes on,
experiments share what they have in common, and nothing of another text, teacher or setting is taken for it.
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
from fxcompress import CompressError, Objective, Training

ROOT = Path(__file__).resolve().parents[2]
LENGTH, BATCH = 256, 16  # tokens of a row, rows of a step
CALIBRATION = 64  # rows
PART = 1 / 40  # of the teacher's tokens that a distillation takes
RATE = 2e-3  # of learning, that the search for the best one begins with
JUDGED = 12  # every so many-th row of the held-out text is judged; others choose the learning rate
CHOOSING = 100  # the seed of runs that choose a learning rate


@dataclass(frozen=True)
class Lab:
    """``tokens``: of the texts, by their names; ``taught``: with how many tokens the teacher was trained, at which
    learning rate; ``given``: hashes of all of this."""

    teacher: PreTrainedModel
    tokenizer: Tokenizer
    tokens: dict[str, np.ndarray]
    taught: tuple[int, float]
    given: dict[str, str]
    seeds: range
    output: Path
    compile: bool

    @classmethod
    def opened(cls, arguments: argparse.Namespace) -> Lab:
        folder, output = arguments.teacher, arguments.output
        training = folder / "training.json"
        if not training.is_file():
            raise SystemExit(f"{training} is not there: it says with how many tokens the teacher was trained")
        output.mkdir(parents=True, exist_ok=True)
        texts_of = {name: path for name, path in vars(arguments).items() if name.endswith("text")}
        files = {**texts_of, "teacher": folder / "model.safetensors", "training": training}
        given = {name: digest(path) for name, path in files.items()}
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = {name: encoded(path, tokenizer, output / f"{given[name]}.npy") for name, path in texts_of.items()}
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        known = json.loads(training.read_text())
        taught = known["tokens"], known["learning_rate"]
        return cls(teacher, tokenizer, tokens, taught, given, range(arguments.seeds), output, arguments.compile)

    def cell(self, name: str, seed: int, run: Callable[[], dict[str, Any]], *of: Any) -> dict[str, Any]:
        """What a run gave, from its file if that is there. ``of``: what it depends on beside texts and teacher."""
        settings = (LENGTH, BATCH, CALIBRATION, PART, JUDGED, CHOOSING, self.taught, *of)
        file = self.output / f"{name}, seed {seed}, {self.key(*settings)}.json"
        if not file.exists():
            print(f"{name}, seed {seed}", flush=True)
            torch.manual_seed(seed)
            replace(file, json.dumps(run()))
        return json.loads(file.read_text())

    def key(self, *of: Any) -> str:
        """A short hash of these, the texts and the teacher."""
        return hashlib.sha256(json.dumps([self.given, of], sort_keys=True).encode()).hexdigest()[:12]

    def rows(self, seed: int, count: int, text: str = "text") -> Tensor:
        """(count, length): which windows of a text a seed takes; each of them once before any is taken again."""
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
            f" {self.bits_of_teacher():.4f} bits per byte in float32 on every {JUDGED}th window of the held-out text"
        )

    def epochs_of(self, part: float, text: str) -> float:
        return self.tokens_of(part) / len(self.tokens[text])

    def compressed(self, passes: list[Any], seed: int) -> PreTrainedModel:
        """The teacher after some passes, every one proven, as a model of transformers."""
        rows = self.rows(1000 + seed, CALIBRATION)
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

    def runs(self, name: str, run: Callable[[int, float], dict[str, Any]], *of: Any, seeds: int | None = None) -> Runs:
        """The cells of all seeds, or of the first few, at the best learning rate.

        That is found with a seed and on rows of its own: from ``RATE`` it is doubled, or else halved, while that helps.
        """

        def chosen_by(rate: float) -> float:
            return self.cell(f"{name}, choosing {rate:g}", CHOOSING, lambda: tried(run, rate), rate, *of)["choosing"]

        rate = RATE
        factor = 2.0 if chosen_by(2 * RATE) < chosen_by(RATE) else 0.5
        while chosen_by(factor * rate) < chosen_by(rate):
            rate *= factor
        return self.runs_at(rate, name, run, *of, seeds=seeds)

    def runs_at(
        self, rate: float, name: str, run: Callable[[int, float], dict[str, Any]], *of: Any, seeds: int | None = None
    ) -> Runs:
        """The same at a given learning rate."""
        found = [self.cell(name, seed, lambda seed=seed: run(seed, rate), rate, *of) for seed in self.seeds[:seeds]]
        return Runs(rate, found)

    def judged(self, model: PreTrainedModel, text: str = "held_out_text") -> dict[str, float]:
        """What is reported of a trained model, and what a learning rate is chosen by: other rows of the same text."""
        return {"after": self.bits(model, text), "choosing": self.bits(model, text, JUDGED // 2)}

    def bits_of_teacher(self, text: str = "held_out_text") -> float:
        return self.cell(f"teacher, {text}", 0, lambda: {"after": self.bits(self.teacher, text)})["after"]

    @torch.no_grad()
    def bits(self, model: PreTrainedModel, text: str = "held_out_text", first: int = 0) -> float:
        """Bits per byte of every ``JUDGED``-th window of a held-out text from the ``first`` on, each by itself."""
        tokens, counts = self.tokens[text][first * LENGTH :], texts.byte_counts(self.tokenizer)
        nats, count = 0.0, 0
        with memory.kept(), fused.installed():
            for batch in texts.held_out(tokens, LENGTH, BATCH, JUDGED):
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
                nats += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
                count += int(counts[batch[:, 1:]].sum())
        return nats / math.log(2) / count


@dataclass(frozen=True)
class Runs:
    """Cells of some seeds, and the learning rate that they were trained at."""

    rate: float
    cells: list[dict[str, Any]]


def tried(run: Callable[[int, float], dict[str, Any]], rate: float) -> dict[str, Any]:
    """A run that chooses a learning rate: one at which the loss is no number any more is the worst."""
    try:
        return run(CHOOSING, rate)
    except CompressError as error:
        print(f"  {error}", flush=True)
        return {"choosing": math.inf}


def replace(file: Path, text: str) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def encoded(path: Path, tokenizer: Tokenizer, file: Path) -> np.ndarray:
    """A text as one row of tokens, kept in a file."""
    if not file.exists():
        beside = file.with_name(f"new-{file.name}")
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
